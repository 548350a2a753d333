/* The rows of Stack LoRAs, drawn as elements, so that both of ComfyUI's renderers show them. The node's own `loras`
   text stays the value: the API, saved workflows and undo know nothing of this file. */

import { app } from "../../../scripts/app.js";
import { counted, element } from "./clips_server.js";
import { addElement, after } from "./node_hooks.js";
import { labelled, openMenu, sign } from "./stack_parts.js";
import { listLoras, openPicker } from "./stack_picker.js";
import { isNumber, rowElement, SECONDS } from "./stack_row.js";
import { STACK_STYLE } from "./stack_style.js";

const HEAD = 26;
const ADD = 30;
const LINE1 = 30;
const LINE2 = 22;
const GAP = 4;
const MOST_UNSCROLLED = 12 * (LINE1 + GAP);
const MARGIN = 20; // that ComfyUI puts around an element
const NARROWEST = { "": 360, strength_low: 470, audio: 470 };
const SECOND_PROPERTY = "second_strength";
const stacks = new Set();

const plain = (name) => name.replaceAll("\\", "/");
const baseName = (name) => plain(name).split("/").at(-1).toLowerCase();

/** The rows in the text, or null where it is no list of rows. */
function readRows(text) {
    try {
        const rows = JSON.parse(text.trim() || "[]");
        const fine = (row) => row && typeof row === "object" && !Array.isArray(row);
        return Array.isArray(rows) && rows.every(fine) ? rows : null;
    } catch {
        return null;
    }
}

/** The rows of one node. */
class Stack {
    constructor(node, text) {
        Object.assign(this, { node, text, fits: new Map(), loras: null, rows: [], height: 0 });
        this.master = labelled("button", { role: "switch", "data-part": "master" }, { className: "vls-switch" });
        this.master.onclick = () => this.switchAll();
        this.count = element("span", { className: "vls-count" });
        this.mode = labelled("button", { "aria-haspopup": "menu", "data-part": "mode" }, {
            className: "vls-mode", title: "One strength for each LoRA, or a second beside it",
        });
        this.mode.onclick = () => openMenu(this.mode, "Strengths", [
            ["", "One strength"], ...Object.entries(SECONDS).map(([key, { words }]) => [key, words]),
        ], this.second, (second) => this.setSecond(second));
        this.head = element("div", { className: "vls-head" }, [this.master, this.count, this.mode]);
        this.list = labelled("div", { role: "list", "aria-label": "LoRAs", "data-capture-wheel": "true" },
            { className: "vls-list" });
        this.problem = labelled("div", { role: "status" }, { className: "vls-problem", hidden: true });
        this.add = labelled("button", { "aria-haspopup": "listbox", "data-part": "add" }, { className: "vls-add" },
            [sign("plus"), this.addWords = element("span")]);
        this.add.onclick = () => this.askFor();
        this.element = labelled("div", { role: "group", "aria-label": "LoRAs" }, { className: "vls-stack" },
            [this.head, this.list, this.problem, this.add]);
        this.element.addEventListener("keydown", (event) => this.key(event));
        this.element.addEventListener("wheel", (event) => this.wheel(event));
        for (const kind of ["pointerdown", "pointermove", "pointerup"]) {
            this.element.addEventListener(kind, (event) => this.panned(event));
        }
    }

    // What the rows say

    get linked() {
        return this.node.inputs?.some(({ widget, link }) => widget?.name === this.text.name && link != null) ?? false;
    }

    /** Which second strength stands beside the first: "" for none. */
    get second() {
        const used = Object.keys(SECONDS).find((key) => this.rows.some((row) => isNumber(row[key])));
        const kept = this.node.properties?.[SECOND_PROPERTY];
        return used ?? (!this.rows.length && kept in SECONDS ? kept : "");
    }

    /** Whether a LoRA is missing, what has its name elsewhere, and its low-noise partner. */
    stateOf(name) {
        const listed = this.loras?.find((one) => plain(one.name) === plain(name));
        const missing = Boolean(this.loras && name && !listed);
        const same = missing ? this.loras.filter((one) => baseName(one.name) === baseName(name)) : [];
        return { missing, elsewhere: same.map((one) => one.name), low: listed?.low ?? null };
    }

    /** Says which LoRA is missing before ComfyUI, whose own message does not name it, refuses to queue. */
    warn() {
        const muted = this.node.mode === LiteGraph.NEVER || this.node.mode === 4; // 4: bypassed
        const missing = this.rows.filter((row) => row.on !== false && this.stateOf(row.lora ?? "").missing);
        if (missing.length && !muted && !this.linked) {
            const detail = `${missing.map((row) => row.lora).join(", ")}: not in ComfyUI's LoRA folders. Choose another `
                + "or switch the row off.";
            app.extensionManager?.toast?.add({ severity: "error", summary: "Missing LoRA", detail, life: 10000 });
        }
    }

    // Changes

    /** Put rows into the text. `drawn`: the page shows them already; `kept`: they are one step of Undo. */
    write(rows, { focus, drawn = false, kept = true } = {}) {
        this.focus = focus;
        this.quiet = drawn;
        this.text.value = JSON.stringify(rows); // calls text.callback, which draws
        this.quiet = false;
        this.rows = rows;
        if (kept) {
            app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.();
        }
        this.node.graph?.setDirtyCanvas(true, true);
    }

    change(index, values, how) {
        this.write(this.rows.map((row, at) => {
            const changed = at === index ? { ...row, ...values } : row;
            return Object.fromEntries(Object.entries(changed).filter(([, value]) => value !== undefined));
        }), how);
    }

    append(lora) {
        const row = { on: true, lora, strength: 1 };
        const second = this.second;
        this.write([...this.rows, second ? { ...row, [second]: 1 } : row],
            { focus: [this.rows.length, "strength"] });
    }

    duplicate(index) {
        this.write(this.rows.toSpliced(index + 1, 0, { ...this.rows[index] }), { focus: [index + 1, "pick"] });
    }

    remove(index) {
        this.write(this.rows.toSpliced(index, 1), { focus: [Math.min(index, this.rows.length - 2), "pick"] });
    }

    move(from, to, part = "pick") {
        if (to >= 0 && to < this.rows.length && to !== from) {
            this.write(this.rows.toSpliced(from, 1).toSpliced(to, 0, this.rows[from]), { focus: [to, part] });
        }
    }

    switchAll() {
        const on = this.rows.some((row) => row.on === false);
        this.write(this.rows.map((row) => ({ ...row, on })));
    }

    setSecond(second) {
        this.node.setProperty(SECOND_PROPERTY, second);
        this.write(this.rows.map((row) => {
            const bare = Object.fromEntries(Object.entries(row).filter(([key]) => !(key in SECONDS)));
            return second ? { ...bare, [second]: row[second] ?? row.strength ?? 1 } : bare;
        }));
    }

    askFor() {
        if (!readRows(this.text.value ?? "")) {
            this.write([]);
            return;
        }
        openPicker(this.add, "", (lora) => this.append(lora));
    }

    // Mouse and keyboard

    /** Drag a row by its grip; a line shows where it goes. */
    drag(event, from) {
        if (event.button !== 0) {
            return;
        }
        event.preventDefault();
        const rows = [...this.list.children];
        const grip = event.currentTarget;
        let to = from;
        grip.setPointerCapture(event.pointerId);
        rows[from].classList.add("vls-dragged");
        const mark = () => rows.forEach((row, at) => {
            row.classList.toggle("vls-before", at === to && to < from);
            row.classList.toggle("vls-after", at === to && to > from);
        });
        const move = ({ clientY }) => {
            const middles = rows.map((row) => row.getBoundingClientRect()).map(({ top, height }) => top + height / 2);
            to = middles.filter((middle, at) => at !== from && middle < clientY).length;
            mark();
        };
        const end = ({ type }) => {
            grip.removeEventListener("pointermove", move);
            rows.forEach((row) => row.classList.remove("vls-dragged", "vls-before", "vls-after"));
            if (type === "pointerup") {
                this.move(from, to);
            }
        };
        grip.addEventListener("pointermove", move);
        grip.addEventListener("pointerup", end, { once: true });
        grip.addEventListener("pointercancel", end, { once: true });
    }

    key(event) {
        const { part } = event.target.dataset ?? {};
        const index = [...this.list.children].findIndex((row) => row.contains(event.target));
        const way = { ArrowUp: -1, ArrowDown: 1 }[event.key];
        if (event.ctrlKey || event.metaKey) {
            return; // ComfyUI's own: Undo, Copy, Queue
        }
        event.stopPropagation(); // or a letter would do what it does on the canvas
        if (event.target.tagName === "INPUT" || index < 0) {
            return;
        }
        if (way && event.altKey) {
            this.move(index, index + way, part);
        } else if (way) {
            this.list.children[index + way]?.querySelector(`[data-part=${part}]`)?.focus();
        } else if (event.key === "Delete") {
            this.remove(index);
        } else {
            return;
        }
        event.preventDefault();
    }

    wheel(event) {
        const scrolls = this.list.scrollHeight > this.list.clientHeight + 1 && !event.ctrlKey;
        if (!LiteGraph.vueNodesMode && !scrolls) { // there the element lies over the canvas
            event.preventDefault();
            app.canvas.processMouseWheel(event);
        }
    }

    /** The middle button pans the canvas, also from here. */
    panned(event) {
        const middle = event.type === "pointermove" ? event.buttons & 4 : event.button === 1;
        if (middle && !LiteGraph.vueNodesMode) {
            const pass = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
            app.canvas[pass[event.type]](event);
        }
    }

    // Drawing

    async draw() {
        if (this.quiet) {
            return;
        }
        const rows = readRows(this.text.value ?? "");
        this.rows = rows ?? [];
        this.show(rows);
        const loras = await listLoras().catch(() => null);
        if (loras !== this.loras) {
            this.loras = loras;
            this.show(readRows(this.text.value ?? ""));
        }
    }

    show(rows) {
        const active = document.activeElement;
        const at = this.element.contains(active)
            ? [[...this.list.children].findIndex((row) => row.contains(active)), active.dataset?.part] : null;
        this.list.replaceChildren(...this.rows.map((row, index) => rowElement(this, row, index)));
        const linked = this.linked;
        this.element.inert = linked;
        this.problem.hidden = Boolean(rows) && !linked;
        this.problem.textContent = linked ? "The rows come in by the loras socket."
            : "The rows cannot be read: they are no JSON list.";
        this.problem.title = this.text.value;
        this.element.classList.toggle("vls-canvas", !LiteGraph.vueNodesMode);
        this.addWords.textContent = rows ? "Add LoRA" : "Begin anew";
        this.list.hidden = this.head.hidden = linked;
        this.showHead();
        this.refocus(this.focus ?? at);
        this.focus = null;
        this.fitNode();
    }

    showHead() {
        const on = this.rows.filter((row) => row.on !== false).length;
        const all = this.rows.length;
        this.master.setAttribute("aria-checked", on === 0 ? "false" : on === all ? "true" : "mixed");
        this.master.setAttribute("aria-label", on === all ? "Switch all LoRAs off" : "Switch all LoRAs on");
        this.master.title = this.master.ariaLabel;
        this.master.disabled = !all;
        this.count.textContent = !all ? "No LoRA yet" : on === all ? counted(all, "LoRA") : `${on} of ${counted(all, "LoRA")} on`;
        const words = this.second ? SECONDS[this.second].short.join(" · ") : "Strength";
        this.mode.replaceChildren(words, sign("down"));
        this.mode.setAttribute("aria-label", `Strengths: ${words}`);
    }

    refocus(place) {
        if (!place?.[1]) {
            return;
        }
        const [index, part] = place;
        const row = this.list.children[index];
        (row ?? this.element).querySelector(row ? `[data-part=${part}]` : index < 0 ? `[data-part=${part}], .vls-add` : ".vls-add")
            ?.focus({ preventScroll: true });
    }

    /** Height of all rows, and the node as much higher or lower as they have become. */
    fitNode() {
        const lines = [...this.list.children].map((row) => LINE1 + GAP + (row.childElementCount > 1 ? LINE2 : 0));
        const rows = lines.reduce((sum, height) => sum + height, 0);
        const shown = Math.min(rows, MOST_UNSCROLLED);
        const other = HEAD + GAP + ADD + (this.problem.hidden ? 0 : 40);
        this.list.style.minHeight = `${Math.max(0, shown - GAP)}px`;
        this.full = other + rows + MARGIN;
        const before = this.height;
        this.height = other + shown + MARGIN;
        const [width, height] = this.node.computeSize();
        const grown = before ? this.height - before : 0;
        const wide = Math.max(this.node.size[0], width, NARROWEST[this.second]);
        const size = [wide, Math.max(this.node.size[1] + grown, height)];
        if (size.some((one, at) => one !== this.node.size[at])) {
            this.node.setSize(size);
        }
        this.node.graph?.setDirtyCanvas(true, true);
    }

    /** What a run tells: how many keys of each row's file fit. */
    ran(output) {
        for (const { lora, matched, total, low } of output?.stack_rows ?? []) {
            if (total) {
                this.fits.set(lora, { lora, matched, total, low });
            }
        }
        this.draw();
    }
}

function addStack(node) {
    const text = node.widgets?.find((widget) => widget.name === "loras");
    if (!text) {
        return;
    }
    text.hidden = text.options.hidden = true; // on the canvas, and in Nodes 2.0
    const stack = new Stack(node, text);
    const heights = { getMinHeight: () => stack.height, getMaxHeight: () => stack.full };
    addElement(node, "rows", stack.element, heights).beforeQueued = () => stack.warn();
    after(node, "onConfigure", () => stack.draw());
    after(node, "onConnectionsChange", () => stack.draw());
    after(node, "onExecuted", (output) => stack.ran(output));
    after(node, "onAdded", () => stacks.add(stack));
    after(node, "onRemoved", () => stacks.delete(stack));
    after(text, "callback", () => stack.draw());
    stack.draw();
}

document.head.append(element("style", { textContent: STACK_STYLE }));

app.registerExtension({
    name: "VideoLoraStudio.StackRows",
    nodeCreated(node) {
        if (node.comfyClass === "VLSStack") {
            addStack(node);
        }
    },
    /** ComfyUI's own Refresh. */
    async refreshComboInNodes() {
        await listLoras(true).catch(() => null);
        stacks.forEach((stack) => stack.draw());
    },
});
