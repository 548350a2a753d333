/* The picture of a run: its loss, or its held-out loss by noise level, as SVG in the pixels of the place it has. */

const SPACE = "http://www.w3.org/2000/svg";
const MARGIN = { left: 42, right: 8, top: 6, bottom: 17 };
const LABEL_HEIGHT = 13;
const UNSETTLED = 10; // steps of which a smoothed loss is mostly chance

function drawn(kind, attributes, text) {
    const made = document.createElementNS(SPACE, kind);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    if (text !== undefined) {
        made.textContent = text;
    }
    return made;
}

/** Round numbers between two, about so many. */
function ticks(low, high, count) {
    const rough = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((one) => one * power >= rough * 0.999) * power;
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, at) => (first + at) * step);
}

export function short(value) {
    return Number(value.toPrecision(value < 0.01 ? 2 : 3)).toString();
}

const share = (values, part) => values.toSorted((a, b) => a - b)[Math.floor(part * (values.length - 1))];

/** Where steps and values are on the picture. */
class Frame {
    constructor(svg, { width, height, steps, low, high, right = MARGIN.right, words }) {
        Object.assign(this, { svg, width, height, steps, low, high, right });
        const across = width - MARGIN.left - right;
        this.x = (step) => MARGIN.left + across * (step / steps);
        this.y = (value) => height - MARGIN.bottom - (height - MARGIN.top - MARGIN.bottom)
            * ((Math.min(Math.max(value, low), high) - low) / (high - low));
        for (const value of ticks(low, high, Math.max(2, (height - 30) / 32))) {
            const y = Math.round(this.y(value)) + 0.5;
            svg.append(drawn("line", { x1: MARGIN.left, x2: width - right, y1: y, y2: y }),
                drawn("text", { x: MARGIN.left - 6, y: y + 3.5, "text-anchor": "end" }, words(value)));
        }
        for (const step of ticks(0, steps, Math.max(2, across / 90))) {
            const place = step === 0 ? "start" : this.x(step) > width - right - 16 ? "end" : "middle";
            svg.append(drawn("text", { x: this.x(step), y: height - 3, "text-anchor": place }, step.toLocaleString("en")));
        }
    }

    line(points, attributes) {
        const path = points.map(([step, value]) => `${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`).join("L");
        this.svg.append(drawn("path", { d: `M${path}`, ...attributes }));
    }

    upright(step, attributes) {
        const x = Math.round(this.x(step)) + 0.5;
        this.svg.append(drawn("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom, ...attributes }));
    }

    dot([step, value], radius, attributes = {}) {
        this.svg.append(drawn("circle", { cx: this.x(step), cy: this.y(value), r: radius, ...attributes }));
    }
}

/** What has its step first, by the expert that made the step. */
function inParts(items, experts) {
    const bounds = [...experts.map(([, before]) => before), Infinity];
    return experts.length ? experts.map((_, at) => items.filter(([step]) => step > bounds[at] && step <= bounds[at + 1]))
        : [items];
}

const meanOf = (levels) => {
    const losses = Object.values(levels);
    return losses.reduce((sum, one) => sum + one, 0) / losses.length;
};

/** Held-out judgements of each expert, as [step, loss]. */
export function heldOut({ held_out: judged }) {
    const names = [...new Set(judged.map(([, expert]) => expert))];
    return names.map((name) => judged.filter(([, expert]) => expert === name)
        .map(([step, , levels]) => [step, meanOf(levels)]));
}

/** The loss: each step faint, smoothed, and on held-out clips. `at`: the step that the mouse is at. */
export function drawLoss(svg, curve, { width, height, at }) {
    const { points, experts } = curve;
    const held = heldOut(curve);
    const sure = [...points.map(([, , , smooth]) => smooth), ...held.flat().map(([, loss]) => loss)];
    const low = Math.min(share(points.map(([, lowest]) => lowest), 0.01), ...sure);
    const high = Math.max(share(points.map(([, , highest]) => highest), 0.92), ...sure);
    const room = (high - low || high || 1) * 0.06;
    const frame = new Frame(svg, {
        width, height, steps: Math.max(curve.total, curve.last, 1), low: Math.max(0, low - room), high: high + room,
        words: short,
    });
    const raw = points.flatMap(([step, lowest, highest], place) => {
        const pair = [[step, lowest], [step, highest]];
        return lowest === highest ? [pair[0]] : place % 2 ? pair.reverse() : pair;
    });
    experts.slice(1).forEach(([, before]) => frame.upright(before, { class: "vls-part" }));
    const dense = raw.length > width / 2 ? "vls-raw vls-dense" : "vls-raw";
    inParts(raw, experts).filter((part) => part.length).forEach((part) => frame.line(part, { class: dense }));
    const smooth = points.map(([step, , , value]) => [step, value]);
    for (const part of inParts(smooth, experts).filter((part) => part.length)) {
        const settled = part.filter(([step]) => step >= part[0][0] + UNSETTLED);
        frame.line(settled.length ? settled : part, { class: "vls-smooth" });
    }
    for (const judged of held) {
        frame.line(judged, { class: "vls-held" });
        judged.forEach((one) => frame.dot(one, 3.5));
    }
    if (at !== null) {
        frame.upright(at, { class: "vls-cross" });
    }
    frame.dot(smooth.find(([step]) => step === at) ?? smooth.at(-1), 4, { class: "vls-now" });
    return frame;
}

const colourOf = (place, count) =>
    `color-mix(in oklab, var(--vls-smooth) ${Math.round(100 * (1 - place / Math.max(1, count - 1)))}%, var(--vls-held))`;

/** Held-out loss at each noise level, as a share of the first judgement, each named at its end. */
export function drawLevels(svg, curve, { width, height, at }) {
    const lines = new Map();
    for (const [step, expert, levels] of curve.held_out) {
        for (const [level, loss] of Object.entries(levels)) {
            const key = `${expert} ${level}`;
            lines.set(key, [...(lines.get(key) ?? []), [step, loss]]);
        }
    }
    const shown = [...lines].map(([key, line]) => ({
        level: Number(key.split(" ").at(-1)), line: line.map(([step, loss]) => [step, (100 * loss) / (line[0][1] || 1)]),
    })).sort((one, other) => one.level - other.level);
    const values = shown.flatMap(({ line }) => line.map(([, value]) => value));
    const [low, high] = [Math.min(...values, 98), Math.max(...values, 100)];
    const room = (high - low) * 0.06;
    const right = 66;
    const frame = new Frame(svg, {
        width, height, right, steps: Math.max(curve.total, curve.last, 1), low: Math.max(0, low - room),
        high: high + room, words: (value) => `${short(value)} %`,
    });
    if (at !== null) {
        frame.upright(at, { class: "vls-cross" });
    }
    const labels = shown.map(({ level, line }, place) => {
        const stroke = colourOf(place, shown.length);
        frame.line(line, { class: "vls-level", style: `stroke: ${stroke}` });
        line.forEach((one) => frame.dot(one, 3, { style: `fill: ${stroke}` }));
        return { level, y: frame.y(line.at(-1)[1]), x: frame.x(line.at(-1)[0]) };
    }).sort((one, other) => one.y - other.y);
    const most = height - MARGIN.bottom - LABEL_HEIGHT * (labels.length - 1);
    labels.forEach((label, place) => {
        const above = place ? labels[place - 1].y + LABEL_HEIGHT : MARGIN.top + 4;
        label.y = Math.min(Math.max(label.y, above), most + LABEL_HEIGHT * place);
        svg.append(drawn("text", { x: label.x + 8, y: label.y + 4 }, `${Math.round(100 * label.level)} % noise`));
    });
    return frame;
}

/** The step of a curve's points nearest to a place on the picture, given as a share of its width. */
export function stepAt(frame, points, place) {
    const wanted = ((place * frame.width - MARGIN.left) / (frame.width - MARGIN.left - frame.right)) * frame.steps;
    const near = (best, [step]) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best);
    return points.reduce(near, points[0][0]);
}
