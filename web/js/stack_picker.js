/* Choosing a LoRA by typing parts of its name; and which LoRAs there are. */

import { ask, element } from "./clips_server.js";
import { labelled, Panel } from "./stack_parts.js";

const MOST_SHOWN = 200;
const ENDING = /\.safetensors$/i;
let known = null;

/** The LoRAs as [{name, low}], `low` the low-noise partner; asked for once, and anew where `fresh`. */
export function listLoras(fresh = false) {
    if (!known || fresh) {
        const asked = ask("loras").then((told) => told.loras);
        asked.catch(() => (known = known === asked ? null : known));
        known = asked;
    }
    return known;
}

/** Folder and base name of a LoRA, for the eye: without its ending. */
export function parted(name) {
    const at = Math.max(name.lastIndexOf("/"), name.lastIndexOf("\\")) + 1;
    return { folder: name.slice(0, Math.max(0, at - 1)), base: name.slice(at).replace(ENDING, "") };
}

/** Open the choice at an element; `choose` gets the name. */
export function openPicker(anchor, chosen, choose) {
    let loras = [];
    let found = [];
    let active = 0;
    const list = labelled("div", { role: "listbox", "aria-label": "LoRAs", id: "vls-options" },
        { className: "vls-options" });
    const search = labelled(
        "input",
        { role: "combobox", "aria-controls": "vls-options", "aria-expanded": "true", "aria-autocomplete": "list",
            "aria-label": "Search LoRAs" },
        { type: "text", placeholder: "Search LoRAs", autocomplete: "off", spellcheck: false },
    );
    const nothing = labelled("div", { role: "status" }, { className: "vls-nothing", hidden: true });
    const width = Math.max(360, anchor.getBoundingClientRect().width);
    const panel = new Panel(anchor, [element("div", { className: "vls-search" }, [search]), list, nothing],
        { label: "Choose a LoRA", width });

    const take = (name) => {
        panel.close();
        choose(name);
    };
    const point = (index) => {
        list.children[active]?.classList.remove("vls-active");
        active = Math.max(0, Math.min(index, list.children.length - 1));
        const option = list.children[active];
        option?.classList.add("vls-active");
        option?.scrollIntoView({ block: "nearest" });
        search.setAttribute("aria-activedescendant", option?.id ?? "");
    };
    const draw = () => {
        const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        const begins = ({ name }) => words.length > 0 && parted(name).base.toLowerCase().startsWith(words[0]);
        const holds = (name) => words.every((word) => name.includes(word));
        found = loras.filter(({ name }) => holds(name.replace(ENDING, "").toLowerCase()));
        found.sort((one, other) => begins(other) - begins(one)); // the others stay as they are
        list.replaceChildren(...found.slice(0, MOST_SHOWN).map(({ name, low }, index) => {
            const { folder, base } = parted(name);
            const parts = [element("b", { textContent: base }), element("i", { textContent: folder })];
            if (low) {
                parts.splice(1, 0, element("span", { className: "vls-tag", textContent: "pair", title: `with ${low}` }));
            }
            return labelled(
                "div", { role: "option", id: `vls-option-${index}`, "aria-selected": name === chosen },
                { className: "vls-option", title: name, onclick: () => take(name), onpointermove: () => point(index) },
                parts,
            );
        }));
        const more = found.length - MOST_SHOWN;
        nothing.textContent = !loras.length ? "There are no LoRAs in ComfyUI's LoRA folders."
            : !found.length ? "No LoRA has these words in its name."
            : `${more} more: type to narrow them down.`;
        nothing.hidden = found.length > 0 && more <= 0;
        point(words.length ? 0 : Math.max(0, found.findIndex(({ name }) => name === chosen)));
    };
    search.oninput = draw;
    search.onkeydown = (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
        if (step) {
            event.preventDefault();
            point(active + step);
        } else if (event.key === "Enter" && found[active]) {
            event.preventDefault();
            take(found[active].name);
        }
    };
    search.focus();
    const fill = (listed) => {
        loras = listed;
        if (panel.element.isConnected) {
            draw();
            panel.place(anchor);
        }
    };
    const wrong = (error) => {
        nothing.textContent = error.message;
        nothing.hidden = false;
    };
    const before = known;
    before?.then(fill, () => {});
    listLoras(true).then(fill, wrong);
}
