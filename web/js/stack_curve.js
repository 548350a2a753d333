/* A row's curve, what its strength is multiplied by over the sampling steps: its text, its picture, and its field. */

import { element } from "./clips_server.js";
import { labelled, STRONGEST } from "./stack_parts.js";

const NUMBER = String.raw`[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d{1,3})?`; // as nodes/rows.py reads it
const POINT = new RegExp(String.raw`^(${NUMBER})\s*:\s*(${NUMBER})$`, "i");
const MOST_POINTS = 32;
const LONGEST = 1000;
const HELP = "Place:factor over the steps, such as 0:0, 0.3:1, 1:0.4; straight between the places, which go from 0 to 1.";
const OWN = "own";
const SHAPES = [
    ["", "Level"], ["0:0, 0.5:1", "Fade in"], ["0.5:1, 1:0", "Fade out"], ["0:0, 0.5:1, 1:0", "Fade in and out"],
    [OWN, "Own curve"],
];
const [WIDTH, HEIGHT] = [60, 18];

/** The points [[place, factor], ...] of a text, none where it is empty; or why it cannot be read. */
export function readCurve(text) {
    if (typeof text !== "string" || text.length > LONGEST) {
        return { points: [], wrong: "It must be text such as 0:0, 0.3:1." };
    }
    const parts = text.trim() ? text.split(",").map((part) => part.trim()) : [];
    const points = [];
    for (const part of parts) {
        const [, place, factor] = POINT.exec(part)?.map(Number) ?? [];
        const last = points.at(-1)?.[0];
        const wrong = place === undefined ? `“${part.slice(0, 20)}” cannot be read: write place:factor, such as 0.3:1.`
            : place < 0 || place > 1 ? `The place of ${part} must lie between 0 and 1.`
            : Math.abs(factor) > STRONGEST ? `The factor of ${part} must lie between −${STRONGEST} and ${STRONGEST}.`
            : place <= last ? `${part} must lie after ${last}: the places rise.`
            : points.length === MOST_POINTS ? `There are ${parts.length} points; at most ${MOST_POINTS} can be set.` : "";
        if (wrong) {
            return { points: [], wrong };
        }
        points.push([place, factor]);
    }
    return { points, wrong: "" };
}

function factorAt(points, share) {
    const after = points.findIndex(([place]) => place > share);
    if (after <= 0) {
        return (points.at(after) ?? [0, 1])[1]; // before the first, beyond the last, or there is none
    }
    const [[place, factor], [nextPlace, nextFactor]] = points.slice(after - 1, after + 1);
    return factor + ((nextFactor - factor) * (share - place)) / (nextPlace - place);
}

/** The factor from the first step to the last, 0 outside of the part from `start` to `end`. */
export function curvePicture(points, start, end) {
    const factors = points.map(([, factor]) => factor);
    const [low, high] = [Math.min(0, ...factors), Math.max(1, ...factors)];
    const x = (share) => (1 + (WIDTH - 2) * share).toFixed(1);
    const y = (factor) => (1 + ((HEIGHT - 2) * (high - factor)) / (high - low)).toFixed(1);
    const inside = points.filter(([place]) => place > start && place < end);
    const line = [[start, factorAt(points, start)], ...inside, [end, factorAt(points, end)]];
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const drawn = (className, d) => {
        const path = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
        path.setAttribute("class", className);
        path.setAttribute("d", d);
    };
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("class", "vls-curve");
    svg.setAttribute("aria-hidden", "true"); // the text beside it says the same
    drawn("vls-zero", `M1 ${y(0)}H${WIDTH - 1}`);
    const course = line.map(([share, factor]) => `L${x(share)} ${y(factor)}`).join("");
    drawn("vls-course", `M1 ${y(0)}H${x(start)}${course}V${y(0)}H${WIDTH - 1}`);
    return svg;
}

/** The field: a shape to choose, its picture, its text. `part` gives [start, end], `change` gets a text that can be
    read. `draw` draws the picture anew. */
export class CurveField {
    constructor(text, { part, change }) {
        Object.assign(this, { part, change });
        this.shape = labelled(
            "select", { "aria-label": "Shape of the curve" }, { onchange: () => this.choose() },
            SHAPES.map(([value, textContent]) => element("option", { value, textContent, hidden: value === OWN })),
        );
        this.input = labelled("input", { "aria-describedby": "vls-curve-said" }, {
            type: "text", id: "vls-curve", value: text, placeholder: "level", spellcheck: false, autocomplete: "off",
            oninput: () => this.draw(), onchange: () => this.keep(),
        });
        this.picture = element("span", { className: "vls-curve-box" });
        this.said = labelled("p", { role: "status" }, { id: "vls-curve-said" });
        this.elements = [
            element("label", { htmlFor: "vls-curve", textContent: "Curve" }),
            element("div", {}, [this.shape, this.picture, this.input]), this.said,
        ];
        this.draw();
    }

    draw() {
        const text = this.input.value;
        const { points, wrong } = readCurve(text);
        this.said.textContent = wrong || HELP;
        this.said.classList.toggle("vls-bad", Boolean(wrong));
        this.input.setAttribute("aria-invalid", Boolean(wrong));
        this.shape.value = SHAPES.find(([value]) => value === text.trim())?.[0] ?? OWN;
        this.picture.replaceChildren(...(wrong ? [] : [curvePicture(points, ...this.part())]));
    }

    keep() {
        if (!readCurve(this.input.value).wrong) {
            this.change(this.input.value.trim());
        }
    }

    choose() {
        this.input.value = this.shape.value;
        this.draw();
        this.keep();
    }
}
