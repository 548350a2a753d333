/* Rows for Stack LoRAs: a switch, the file, its strength. The node's own `loras` text stays the value, so the API and
   saved workflows know nothing of this file. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const ROW_HEIGHT = 30;
const STRONGEST = 10;

const STYLE = `
.vls-rows { display: flex; flex-direction: column; gap: 4px; font-size: 12px; overflow-y: auto; }
.vls-rows > div { display: flex; gap: 4px; align-items: center; min-height: 26px; }
.vls-rows select, .vls-rows input[type=number], .vls-rows button {
    background: var(--comfy-input-bg); color: var(--input-text); border: 1px solid var(--border-color);
    border-radius: 4px; height: 24px; font-size: 12px; box-sizing: border-box; }
.vls-rows select { flex: 1; min-width: 0; }
.vls-rows input[type=number] { width: 64px; }
.vls-rows .vls-off select, .vls-rows .vls-off input[type=number] { opacity: 0.45; }
.vls-rows .vls-missing select { border-color: var(--error-text); color: var(--error-text); }`;

let names = null;

/** Names of the LoRA files, as ComfyUI lists them; asked for once, and again on `refresh`. */
async function loraNames(refresh = false) {
    if (!names || refresh) {
        names = api
            .fetchApi("/models/loras")
            .then((answer) => (answer.ok ? answer.json() : []))
            .catch(() => []);
    }
    return names;
}

function element(kind, properties = {}, children = []) {
    const made = Object.assign(document.createElement(kind), properties);
    made.append(...children);
    return made;
}

/** The rows in the text, or null where it is no list of rows. */
function readRows(text) {
    try {
        const rows = JSON.parse(text.trim() || "[]");
        return Array.isArray(rows) && rows.every((row) => row && typeof row === "object") ? rows : null;
    } catch {
        return null;
    }
}

function rowElement(row, files, change, remove) {
    const name = typeof row.lora === "string" ? row.lora : "";
    const missing = name !== "" && !files.includes(name);
    const offered = [...(name === "" ? [""] : []), ...(missing ? [name] : []), ...files];
    const pick = element("select", { title: missing ? `${name} is not among your LoRAs` : name });
    for (const file of offered) {
        const label = file === "" ? "choose a LoRA" : file === name && missing ? `${file} (missing)` : file;
        pick.append(element("option", { value: file, textContent: label, selected: file === name }));
    }
    const on = element("input", { type: "checkbox", checked: row.on !== false, title: "On or off" });
    const strength = element("input", {
        type: "number", step: 0.05, min: -STRONGEST, max: STRONGEST, value: row.strength ?? 1, title: "Strength",
    });
    const gone = element("button", { textContent: "✕", title: "Remove this row" });
    on.onchange = () => change({ on: on.checked });
    pick.onchange = () => change({ lora: pick.value });
    strength.onchange = () => {
        const number = Number.parseFloat(strength.value);
        change({ strength: Number.isFinite(number) ? Math.max(-STRONGEST, Math.min(STRONGEST, number)) : 1 });
    };
    gone.onclick = remove;
    const state = `${row.on === false ? "vls-off" : ""} ${missing ? "vls-missing" : ""}`;
    return element("div", { className: state }, [on, pick, strength, gone]);
}

function addRows(node) {
    const text = node.widgets?.find((widget) => widget.name === "loras");
    if (!text) {
        return;
    }
    text.hidden = text.options.hidden = true; // on the canvas, and in Nodes 2.0
    const list = element("div", { className: "vls-rows" });
    let shown = 0;
    const rowsWidget = node.addDOMWidget("rows", "vls_rows", list, {
        serialize: false,
        hideOnZoom: false,
        getMinHeight: () => (shown + 1) * ROW_HEIGHT,
    });
    rowsWidget.serialize = false; // last in the node, so the saved values of the others keep their places

    const write = (rows) => {
        text.value = JSON.stringify(rows); // calls text.callback, which draws
    };

    async function draw() {
        const files = await loraNames();
        const rows = readRows(text.value ?? "");
        const change = (index, values) => write(rows.map((row, at) => (at === index ? { ...row, ...values } : row)));
        const add = element("button", { textContent: rows ? "Add LoRA" : "The rows cannot be read: begin anew" });
        add.title = rows ? "Add a row" : text.value;
        add.onclick = async () => {
            await loraNames(true);
            write(rows ? [...rows, { on: true, lora: "", strength: 1 }] : []);
        };
        const lines = (rows ?? []).map((row, index) =>
            rowElement(row, files, (values) => change(index, values), () => write(rows.filter((_, at) => at !== index))),
        );
        list.replaceChildren(...lines, element("div", {}, [add]));
        shown = lines.length;
        const [width, height] = node.computeSize();
        node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
        node.graph?.setDirtyCanvas(true, true);
    }

    const configured = node.onConfigure;
    node.onConfigure = function (...given) {
        configured?.apply(this, given);
        draw();
    };
    const callback = text.callback;
    text.callback = function (...given) {
        callback?.apply(this, given);
        draw();
    };
    draw();
}

app.registerExtension({
    name: "VideoLoraStudio.StackRows",
    setup() {
        document.head.append(element("style", { textContent: STYLE }));
    },
    nodeCreated(node) {
        if (node.comfyClass === "VLSStack") {
            addRows(node);
        }
    },
});
