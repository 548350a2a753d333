/* One row of Stack LoRAs: grip, switch, LoRA, what of it fits, one or two strengths, and the way to the rest. */

import { element } from "./clips_server.js";
import { openAbout } from "./stack_about.js";
import { curvePicture, readCurve } from "./stack_curve.js";
import { labelled, NumberField, sign, STRONGEST } from "./stack_parts.js";
import { openPicker, parted } from "./stack_picker.js";

export const SECONDS = {
    strength_low: { words: "High and low noise", short: ["High", "Low"], names: ["High-noise strength", "Low-noise strength"] },
    audio: { words: "Picture and sound", short: ["Picture", "Sound"], names: ["Picture strength", "Sound strength"] },
};

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** What of a row is not seen in its strengths, in words. */
function details(row, second) {
    const hidden = Object.entries(SECONDS).filter(([key]) => key !== second && isNumber(row[key]));
    const [start, end] = [row.start ?? 0, row.end ?? 1].map((share) => `${Number((100 * share).toFixed(2))}`);
    return [
        ...hidden.map(([key, { short }]) => `${short[1].toLowerCase()} ${row[key]}`),
        row.blocks && `blocks ${row.blocks}`,
        (row.start !== undefined || row.end !== undefined) && `steps ${start} to ${end} %`,
        row.curve && `curve ${row.curve}`,
    ].filter(Boolean).join(" · ");
}

/** Draws one row; `stack` does what the row is asked for. */
export function rowElement(stack, row, index) {
    const name = typeof row.lora === "string" ? row.lora : "";
    const { base, folder } = parted(name);
    const called = base || "no LoRA";
    const on = row.on !== false;
    const state = stack.stateOf(name);
    const fit = stack.fits.get(name);

    const change = (values) => stack.change(index, values);
    const grip = element("span", { className: "vls-grip", title: "Drag to another place (Alt+↑ or Alt+↓)" },
        [sign("grip")]);
    grip.setAttribute("aria-hidden", "true");
    grip.addEventListener("pointerdown", (event) => stack.drag(event, index));

    const toggle = labelled(
        "button", { role: "switch", "aria-checked": on, "aria-label": `Use ${called}`, "data-part": "switch" },
        { className: "vls-switch", title: on ? "On" : "Off", onclick: () => change({ on: !on }) },
    );
    const pick = labelled(
        "button", { "aria-haspopup": "listbox", "aria-label": `LoRA: ${name || "none"}`, "data-part": "pick" },
        { className: "vls-pick", title: name || "Choose a LoRA" },
        [element("b", { textContent: base || "Choose a LoRA" })],
    );
    if (state.low) {
        pick.append(element("span", { className: "vls-tag", textContent: "pair", title: `Low noise: ${state.low}` }));
    }
    pick.onclick = () => openPicker(pick, name, (lora) => change({ lora }));

    const strengths = [["strength", stack.second ? SECONDS[stack.second].names[0] : "Strength"]];
    if (stack.second) {
        strengths.push([stack.second, SECONDS[stack.second].names[1]]);
    }
    const first = isNumber(row.strength) ? row.strength : 1;
    const numbers = strengths.map(([key, label]) => new NumberField({
        label: `${label} of ${called}`, value: isNumber(row[key]) ? row[key] : first, low: -STRONGEST, high: STRONGEST,
        step: 0.05, fine: 0.01, full: 2, part: key,
        onDrag: (value) => stack.change(index, { [key]: value }, { drawn: true, kept: false }),
        onChange: (value) => stack.change(index, { [key]: value }),
    }).element);

    const about = (anchor) => openAbout(anchor, row, {
        low: state.low, fit, change,
        acts: [
            ["Duplicate", () => stack.duplicate(index)],
            ["Move up", index > 0 ? () => stack.move(index, index - 1) : null],
            ["Move down", index < stack.rows.length - 1 ? () => stack.move(index, index + 1) : null],
            ["Remove", () => stack.remove(index)],
        ],
    });
    const more = labelled(
        "button", { "aria-haspopup": "dialog", "aria-label": `About ${called}`, "data-part": "more" },
        { className: "vls-more", title: "About this LoRA, blocks, steps, curve, remove" }, [sign("more")],
    );
    more.onclick = () => about(more);

    const line = element("div", { className: "vls-line1" }, [grip, toggle, pick, fitElement(fit), ...numbers, more]);
    const told = state.missing ? missingLine(name, state.elsewhere, on, change) : detailLine(row, details(row, stack.second));
    const made = labelled(
        "div", { role: "listitem", "aria-label": `Row ${index + 1}: ${called}${folder && ` in ${folder}`}` },
        { className: "vls-row" }, [line, ...(told ? [told] : [])],
    );
    made.classList.toggle("vls-off", !on);
    made.classList.toggle("vls-missing", state.missing);
    made.oncontextmenu = (event) => {
        if (event.target.tagName !== "INPUT") {
            event.preventDefault();
            event.stopPropagation();
            about(event.clientX || event.clientY ? { left: event.clientX, top: event.clientY, bottom: event.clientY } : more);
        }
    };
    return made;
}

function fitElement(fit) {
    const all = [fit, fit?.low].filter(Boolean);
    const part = all.some(({ matched, total }) => matched < total);
    const text = all.map(({ matched, total }) => `${matched}/${total}`).filter((one, at, them) => them[0] !== one || !at);
    return element("span", {
        className: `vls-fit ${part ? "vls-part" : ""}`, textContent: text.join(" "), hidden: !all.length,
        title: all.map(({ lora, matched, total }) => `${matched} of ${total} keys of ${lora} fit the model`).join("\n"),
    });
}

function detailLine(row, text) {
    const { points, wrong } = readCurve(row.curve ?? "");
    const told = wrong ? `Curve: ${wrong}` : text;
    const [start, end] = [row.start ?? 0, row.end ?? 1];
    const picture = !wrong && (points.length || start > 0 || end < 1) ? [curvePicture(points, start, end)] : [];
    return told && element("div", { className: `vls-line2 ${wrong && "vls-bad"}` },
        [...picture, element("span", { textContent: told, title: told })]);
}

function missingLine(name, elsewhere, on, change) {
    const offers = elsewhere.slice(0, 2).map((other) => element("button", {
        className: "vls-offer", textContent: `Use ${other}`, title: `${other} has the same name`,
        onclick: () => change({ lora: other }),
    }));
    const words = element("span", {
        textContent: on ? "Not found." : "Not found, off.",
        title: `${name} is not in ComfyUI's LoRA folders${on ? ": the queue stops here" : ""}.`,
    });
    return labelled("div", { role: "status" }, { className: "vls-line2" }, [words, ...offers]);
}
