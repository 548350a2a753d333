/* One row's own panel: what its LoRA says of itself, where and when it acts, and what can be done with the row. */

import { api } from "../../../scripts/api.js";
import { ask, element } from "./clips_server.js";
import { CurveField } from "./stack_curve.js";
import { labelled, NumberField, Panel } from "./stack_parts.js";
import { parted } from "./stack_picker.js";

const BLOCKS = /^\s*(\*|\d{1,3}(\s*-\s*\d{1,3})?)\s*:\s*[-+]?(\d+\.?\d*|\.\d+)\s*$/;
const BLOCKS_HELP = "Strength in each block, such as 0-9:0.5, 31-35:1. Blocks that are not named are left out; "
    + "*:1 keeps them.";

const readable = (text) => !text.trim() || text.split(",").every((part) => BLOCKS.test(part));

function size(bytes) {
    return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${Math.max(0.1, bytes / 1e6).toFixed(1)} MB`;
}

/** Put text on the clipboard, also where the page is not served securely. */
async function copy(text) {
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        const field = element("textarea", { value: text, style: "position: fixed; opacity: 0" });
        (document.querySelector(".vls-pop:popover-open") ?? document.body).append(field);
        field.select();
        document.execCommand("copy");
        field.remove();
    }
}

function preview(name, { kind, stamp }) {
    const source = api.apiURL(`/video_lora/lora_preview?name=${encodeURIComponent(name)}&at=${stamp}`);
    return kind.startsWith("video")
        ? element("video", { src: source, muted: true, loop: true, autoplay: true, playsInline: true })
        : element("img", { src: source, alt: "Preview" });
}

function facts(name, told, fit) {
    const lines = [
        ["Base", told.base], ["Rank", told.rank], ["Steps", told.steps?.toLocaleString("en")],
        ["Keys", fit ? `${fit.matched} of ${fit.total} match` : told.keys], ["Size", size(told.bytes)],
    ].filter(([, value]) => value !== null && value !== undefined && value !== "");
    const list = element("dl", {}, lines.flatMap(([term, value]) => [
        element("dt", { textContent: term }), element("dd", { textContent: value }),
    ]));
    return element("div", { className: "vls-facts" }, [list, ...(told.preview ? [preview(name, told.preview)] : [])]);
}

function triggerWords(words) {
    if (!words.length) {
        return element("div", { className: "vls-words vls-said", textContent: "The file names no trigger words." });
    }
    const button = element("button", { className: "vls-act", textContent: "Copy trigger words" });
    button.onclick = async () => {
        await copy(words.join(", "));
        button.textContent = "Copied";
        button.focus();
    };
    return element("div", { className: "vls-words" },
        [...words.map((word) => element("code", { textContent: word })), button]);
}

function form(row, change) {
    const said = element("p", { textContent: BLOCKS_HELP, id: "vls-blocks-said" });
    const blocks = labelled("input", { "aria-describedby": said.id }, {
        type: "text", value: row.blocks ?? "", id: "vls-blocks", placeholder: "all blocks", spellcheck: false,
    });
    blocks.oninput = () => {
        const fine = readable(blocks.value);
        said.classList.toggle("vls-bad", !fine);
        blocks.setAttribute("aria-invalid", !fine);
    };
    blocks.onchange = () => readable(blocks.value) && change({ blocks: blocks.value.trim() || undefined });
    const share = (label, name, value, other) => {
        const field = new NumberField({
            label, value: Number((100 * value).toFixed(2)), low: 0, high: 100, step: 5, fine: 1, full: 100, digits: 0,
            unit: " %",
            onChange: (percent) => {
                const [from, to] = name === "start" ? [percent, other().value] : [other().value, percent];
                if (from >= to) { // what is pushed stays at least one step away from the other
                    field.set(name === "start" ? to - field.fine : from + field.fine, false);
                }
                const at = Number((field.value / 100).toFixed(4));
                change({ [name]: at === (name === "start" ? 0 : 1) ? undefined : at });
                curve.draw();
            },
        });
        return field;
    };
    const start = share("From this share of the steps", "start", row.start ?? 0, () => end);
    const end = share("To this share of the steps", "end", row.end ?? 1, () => start);
    const curve = new CurveField(typeof row.curve === "string" ? row.curve : "", {
        part: () => [start.value / 100, end.value / 100],
        change: (text) => change({ curve: text || undefined }),
    });
    return element("div", { className: "vls-form" }, [
        element("label", { htmlFor: "vls-blocks", textContent: "Blocks" }), blocks, said,
        element("span", { textContent: "Steps" }), element("div", {}, [start.element, "to", end.element]),
        ...curve.elements,
    ]);
}

/** Open the panel of a row. `change` gets fields to set (undefined: to take away), `acts` are [words, deed or null]. */
export function openAbout(anchor, row, { low, fit, change, acts }) {
    const { folder, base } = parted(row.lora);
    const title = element("h3", { textContent: base || "No LoRA is chosen" });
    for (const more of [folder, low && `with ${parted(low).base} for low noise`].filter(Boolean)) {
        title.append(element("small", { textContent: more }));
    }
    const told = labelled("div", { role: "status" }, { className: "vls-said", textContent: row.lora ? "Reading…" : "" });
    const buttons = acts.map(([words, deed]) => element("button", {
        className: "vls-act", textContent: words, disabled: !deed, onclick: () => (panel.close(), deed()),
    }));
    const about = element("div", { className: "vls-about", tabIndex: -1 },
        [title, told, form(row, change), element("div", { className: "vls-acts" }, buttons)]);
    const panel = new Panel(anchor, [about], { label: `About ${base || "this row"}` });
    about.focus({ preventScroll: true });
    if (row.lora) {
        ask(`lora?name=${encodeURIComponent(row.lora)}`).then(
            (found) => told.replaceWith(facts(row.lora, found, fit), triggerWords(found.triggers)),
            (error) => (told.textContent = error.message),
        ).then(() => panel.element.isConnected && panel.place(anchor));
    }
}
