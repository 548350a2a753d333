/* The run on Train LoRA, as it goes: its curve, speed, memory and time left, in both of ComfyUI's renderers. The server
   keeps the whole curve; this page asks for it once and is told the steps since. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { ask, element } from "./clips_server.js";
import { addElement, after } from "./node_hooks.js";
import { labelled } from "./stack_parts.js";
import { drawLevels, drawLoss, heldOut, short, stepAt } from "./train_view_chart.js";
import { PREVIEWS_HEIGHT, PreviewStage } from "./train_view_previews.js";
import { TRAIN_STYLE } from "./train_view_style.js";

const EVENT = "video_lora.run";
const HEIGHT = 252;
const NARROWEST = 340;
const MOST_POINTS = 1500; // beyond, the server brings them down to 500
const BETWEEN_WORDS = 10000; // that are read out
const BETWEEN_LOADS = 1000;
const AFTER_JUDGING = 6000; // by then the judgement is on the server's disk
const STATES = { finished: "Finished", paused: "Paused", stopped: "Stopped", running: "Broken off", unmatched: "Finished, keys unmatched" };
const NOTHING = { points: [], held_out: [], experts: [], previews: [], total: 0, last: 0, made: 0, status: "", now: null };
const TRAINING = new Set(["VLSTrain", "VLSContinue"]);
const views = new Set();

const expertWords = (expert) => (expert ? expert.replaceAll("_", " ") : "");
const steps = (number) => number.toLocaleString("en");

function duration(seconds) {
    if (seconds < 90) {
        return `${Math.round(seconds)} s`;
    }
    const minutes = Math.round(seconds / 60);
    return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

function pace(seconds) {
    return seconds >= 10 ? `${seconds.toFixed(1)} s` : seconds >= 1 ? `${seconds.toFixed(2)} s` : `${(1000 * seconds).toFixed(0)} ms`;
}

function memoryWords({ used, total }) {
    const [held, all] = [used / 2 ** 30, total / 2 ** 30];
    return `${held < 10 ? held.toFixed(1) : Math.round(held)} of ${Math.round(all)} GB`;
}

/** The course of the loss in a sentence or two, for those who would rather read. */
function courseWords(curve) {
    const { points, experts, last } = curve;
    const before = experts.findLast(([, start]) => start < last)?.[1] ?? 0;
    const part = points.filter(([step]) => step > before);
    const made = last - before;
    if (made < 40) {
        return "Too early to say how the loss goes.";
    }
    const [, , , first] = part.find(([step]) => step >= before + Math.max(20, made / 10));
    const now = part.at(-1)[3];
    const change = (100 * (now - first)) / (first || 1);
    const size = `${Math.abs(change).toFixed(0)} %`;
    const words = [Math.abs(change) < 5 ? `The loss is about what it was at the start, ${short(now)}.`
        : `The loss ${change < 0 ? "fell" : "rose"} by ${size} since the start, to ${short(now)}.`];
    const held = heldOut(curve).at(-1)?.filter(([step]) => step >= before) ?? [];
    if (held.length > 1) {
        const [step, lowest] = held.reduce((best, one) => (one[1] < best[1] ? one : best));
        const [end, latest] = held.at(-1);
        words.push(step === end ? `On held-out clips it is lower than ever, ${short(latest)}.`
            : `On held-out clips it was lowest at step ${steps(step)}, ${short(lowest)}; now it is ${short(latest)}.`);
    }
    return words.join(" ");
}

/** The run of one node. */
class RunView {
    constructor(node) {
        Object.assign(this, { node, run: "", curve: NOTHING, now: null, shown: "loss", at: null, said: 0, loaded: 0 });
        this.due = Infinity; // when it is loaded anew
        this.none = element("div", { className: "vls-run-none", textContent: "The loss is shown here while it trains" });
        this.state = element("span", { className: "vls-run-state" });
        this.steps = element("span", { className: "vls-run-steps" });
        this.done = element("span");
        this.bar = labelled("div", { role: "progressbar", "aria-label": "Steps", "aria-valuemin": 0 },
            { className: "vls-run-bar" }, [this.done]);
        const tab = (name, textContent) => element("button", { textContent, onclick: () => this.choose(name) });
        this.tabs = { loss: tab("loss", "Loss"), levels: tab("levels", "Noise levels") };
        this.choices = labelled("div", { role: "group", "aria-label": "What is shown" }, { className: "vls-run-tabs" },
            Object.values(this.tabs));
        this.legend = element("div", { className: "vls-run-legend" });
        this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        this.svg.setAttribute("role", "img");
        this.picture = element("div", { className: "vls-run-picture" }, [this.svg]);
        this.stage = new PreviewStage();
        this.figures = element("dl", { className: "vls-run-figures" });
        this.words = labelled("p", { role: "status", "aria-live": "polite" }, { className: "vls-run-said" });
        this.full = [
            element("div", { className: "vls-run-head" }, [this.state, this.steps]), this.bar,
            element("div", { className: "vls-run-top" }, [this.choices, this.legend]), this.picture, this.figures,
            this.words, this.stage.element,
        ];
        this.element = labelled("div", { role: "group", "aria-label": "The run" }, { className: "vls-run" },
            [this.none, ...this.full]);
        this.svg.addEventListener("pointermove", (event) => this.point(event));
        this.svg.addEventListener("pointerleave", () => this.point(null));
        this.sizes = new ResizeObserver(() => this.draw());
        this.sizes.observe(this.picture);
        passOn(this.element);
        this.draw();
    }

    /** Whether an event is of this node's run: by its name, or by the node where the name comes in by a socket. */
    hears({ run, node }) {
        const { name } = this;
        return name ? run === name : String(node).split(":").at(-1) === String(this.node.id);
    }

    /** The name of the run, its own or that of the node which began it; empty where it comes in by a socket. */
    get name() {
        for (let node = this.node, left = 100; node && left; left--) {
            const widget = node.widgets?.find((one) => one.name === "name");
            if (widget) {
                return node.inputs?.some((input) => input.widget?.name === "name" && input.link != null) ? "" : widget.value;
            }
            node = node.getInputNode?.(node.inputs?.findIndex((input) => input.name === "run"));
        }
        return "";
    }

    /** What the server has of a run, or of the one that the node names. */
    async load(run = this.name) {
        Object.assign(this, { loaded: Date.now(), due: Infinity });
        const told = run ? await ask(`run?name=${encodeURIComponent(run)}`).catch(() => null) : NOTHING;
        if (told) {
            if (run !== this.run) {
                this.stage.take(); // the newest of another run
            }
            Object.assign(this, { run, curve: told, now: told.now });
            this.stage.take(told.previews);
            this.fit();
            this.draw();
        }
    }

    /** Load a little later, and once for all who ask until then. */
    loadSoon(run, wait = 0) {
        const due = Math.max(Date.now() + wait, this.loaded + BETWEEN_LOADS);
        if (due < this.due) {
            clearTimeout(this.waiting);
            this.due = due;
            this.waiting = setTimeout(() => this.load(run), due - Date.now());
        }
    }

    hear(event) {
        if (event.ended) {
            this.now = null;
            this.loadSoon(event.run);
            return;
        }
        const { phase: before = "", preview = "" } = this.now ?? {};
        this.now = event;
        if (event.preview !== preview) {
            this.loadSoon(event.run);
        }
        if (event.run !== this.run || !this.add(event)) {
            this.loadSoon(event.run);
        } else if (event.phase !== before) {
            this.loadSoon(event.run, before.startsWith("Judging") ? AFTER_JUDGING : 0);
        }
        this.draw();
    }

    /** Put the losses of an event at the curve's end; false where they do not belong there. */
    add({ first, losses, step, total, run }) {
        const { curve } = this;
        if (first > curve.last + 1 || step < curve.last || curve.points.length > MOST_POINTS) {
            return false;
        }
        const { keep } = curve.smoothing;
        for (const loss of losses.slice(curve.last + 1 - first)) {
            if (curve.experts.some(([, before]) => before === curve.last)) {
                curve.smoothing.sum = curve.smoothing.weight = 0;
            }
            curve.smoothing.sum = keep * curve.smoothing.sum + (1 - keep) * loss;
            curve.smoothing.weight = keep * curve.smoothing.weight + 1 - keep;
            curve.made++;
            curve.points.push([++curve.last, loss, loss, curve.smoothing.sum / curve.smoothing.weight]);
        }
        Object.assign(curve, { total });
        this.run = run;
        return true;
    }

    choose(shown) {
        this.shown = shown;
        this.draw();
    }

    point(event) {
        const { left, width } = this.svg.getBoundingClientRect();
        this.at = event && this.frame && this.curve.points.length
            ? stepAt(this.frame, this.curve.points, (event.clientX - left) / width) : null;
        this.draw();
    }

    draw() {
        this.asked ??= requestAnimationFrame(() => {
            this.asked = null;
            this.show();
        });
    }

    show() {
        const { curve, now } = this;
        const empty = !curve.points.length && !now;
        this.element.classList.toggle("vls-canvas", !LiteGraph.vueNodesMode);
        this.none.hidden = !empty;
        this.full.forEach((part) => (part.hidden = empty));
        this.stage.element.hidden = this.stage.empty;
        if (empty) {
            return;
        }
        const total = now?.total || curve.total;
        const state = now ? now.phase.replace(/, step$/, "") : STATES[curve.status] ?? "";
        this.state.textContent = [state, expertWords(now?.expert)].filter(Boolean).join(" · ");
        this.state.title = this.state.textContent;
        this.steps.textContent = this.at === null ? `Step ${steps(curve.made)} of ${steps(total)}` : `At step ${steps(this.at)}`;
        this.done.style.width = `${(100 * curve.made) / (total || 1)}%`;
        this.bar.setAttribute("aria-valuemax", total);
        this.bar.setAttribute("aria-valuenow", curve.made);
        this.showFigures();
        this.showPicture();
        this.say(now ? BETWEEN_WORDS : 0);
    }

    showFigures() {
        const { curve, now } = this;
        this.figures.hidden = !now; // of a run that is over the words say all
        const smooth = curve.points.at(-1)?.[3];
        const left = now?.seconds_left;
        const lines = [
            ["Loss", smooth === undefined ? null : short(smooth)],
            ["A step takes", now?.seconds_per_step ? pace(now.seconds_per_step) : null],
            ["Time left", left !== null && left !== undefined ? duration(left) : null],
            [now?.memory?.kind === "GPU" ? "GPU memory" : "Memory", now?.memory ? memoryWords(now.memory) : null],
        ].filter(([, value]) => value !== null);
        this.figures.replaceChildren(...lines.map(([term, value]) => element("div", {}, [
            element("dt", { textContent: term }), element("dd", { textContent: value }),
        ])));
    }

    showPicture() {
        const { curve, picture, svg, at } = this;
        const levels = curve.held_out.length > 0;
        const shown = levels ? this.shown : "loss";
        this.choices.hidden = !levels;
        Object.entries(this.tabs).forEach(([name, button]) => button.setAttribute("aria-pressed", name === shown));
        const [width, height] = [picture.clientWidth, picture.clientHeight];
        svg.replaceChildren();
        if (!curve.points.length || width < 80 || height < 40) {
            this.legend.replaceChildren();
            return;
        }
        svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        this.frame = (shown === "loss" ? drawLoss : drawLevels)(svg, curve, { width, height, at });
        this.legend.replaceChildren(...this.legendOf(shown));
    }

    /** What the lines are; under the mouse, what they are there. */
    legendOf(shown) {
        const { curve, at } = this;
        const entry = (className, text) => element("span", { className }, [...(className ? [element("i")] : []), text]);
        const [step, low, high, smooth] = curve.points.find(([one]) => one === at) ?? [];
        if (step !== undefined && shown === "loss") {
            const raw = low === high ? short(low) : `${short(low)} to ${short(high)}`;
            return [entry("vls-raw", raw), entry("vls-smooth", short(smooth))];
        }
        if (shown === "levels") {
            return [entry("", "Held-out clips, first = 100 %")];
        }
        const held = curve.held_out.length ? [entry("vls-held", "held out")] : [];
        return [entry("vls-raw", "raw"), entry("vls-smooth", "smoothed"), ...held];
    }

    /** Say how it goes, at most every so many milliseconds. */
    say(wait) {
        const { curve } = this;
        if (Date.now() - this.said >= wait || this.told !== this.run) {
            const words = curve.points.length ? courseWords(curve) : "";
            this.words.textContent = words;
            this.svg.setAttribute("aria-label", `Loss over ${steps(curve.made)} steps. ${words}`);
            Object.assign(this, { said: Date.now(), told: this.run });
        }
    }
}

/** On the canvas the element lies over it: the wheel and the middle button are the canvas's. */
function passOn(root) {
    const pass = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
    const onCanvas = () => !LiteGraph.vueNodesMode;
    root.addEventListener("wheel", (event) => {
        if (onCanvas()) {
            event.preventDefault();
            app.canvas.processMouseWheel(event);
        }
    });
    for (const [kind, method] of Object.entries(pass)) {
        root.addEventListener(kind, (event) => {
            const middle = kind === "pointermove" ? event.buttons & 4 : event.button === 1;
            if (middle && onCanvas()) {
                app.canvas[method](event);
            }
        });
    }
}

function addView(node) {
    const view = new RunView(node);
    addElement(node, "run", view.element, {
        getMinHeight: () => HEIGHT + (view.stage.empty ? 0 : PREVIEWS_HEIGHT),
    });
    const fit = view.fit = () => {
        const least = node.computeSize();
        node.setSize([Math.max(node.size[0], least[0], NARROWEST), Math.max(node.size[1], least[1])]);
    };
    after(node, "onConfigure", () => {
        fit();
        view.loadSoon();
    });
    after(node, "onConnectionsChange", () => view.loadSoon(undefined, 100));
    after(node, "onAdded", () => views.add(view));
    after(node, "onRemoved", () => views.delete(view));
    const name = node.widgets.find((one) => one.name === "name");
    if (name) {
        after(name, "callback", () => view.loadSoon(undefined, 400));
    }
    fit();
    view.loadSoon(undefined, 100); // its name is given after it is made
}

document.head.append(element("style", { textContent: TRAIN_STYLE }));

app.registerExtension({
    name: "VideoLoraStudio.TrainView",
    setup() {
        api.addEventListener(EVENT, ({ detail }) => views.forEach((view) => view.hears(detail) && view.hear(detail)));
        api.addEventListener("reconnected", () => views.forEach((view) => view.loadSoon(view.run || undefined)));
    },
    nodeCreated(node) {
        if (TRAINING.has(node.comfyClass)) {
            addView(node);
        }
    },
});
