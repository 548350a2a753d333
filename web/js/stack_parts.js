/* Small parts of Stack LoRAs: signs, a panel that lies over the page, a number that is dragged, stepped and typed. */

import { element } from "./clips_server.js";

const SIGNS = {
    grip: "M6 4h.01M10 4h.01M6 8h.01M10 8h.01M6 12h.01M10 12h.01",
    more: "M3.5 8h.01M8 8h.01M12.5 8h.01",
    plus: "M8 3v10M3 8h10",
    minus: "M3 8h10",
    down: "M4 6l4 4 4-4",
    check: "M3 8.5l3.5 3.5L13 5",
};
const DOTS = { grip: 1.1, more: 1.3 };
const PIXELS_TO_DRAG = 3;
export const STRONGEST = 10;

export function sign(name) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    made.setAttribute("viewBox", "0 0 16 16");
    made.setAttribute("aria-hidden", "true");
    for (const part of SIGNS[name].split(/(?=M)/)) {
        if (DOTS[name]) {
            const [x, y] = part.match(/[\d.]+/g);
            const dot = made.appendChild(document.createElementNS(made.namespaceURI, "circle"));
            Object.entries({ cx: x, cy: y, r: DOTS[name] }).forEach((pair) => dot.setAttribute(...pair));
        } else {
            made.appendChild(document.createElementNS(made.namespaceURI, "path")).setAttribute("d", part);
        }
    }
    return made;
}

/** An element with attributes, beside properties: roles, aria and data. */
export function labelled(kind, attributes, properties, children) {
    const made = element(kind, properties, children);
    Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
    return made;
}

/** A panel at an element or point of the page, closed by Escape or a click elsewhere; focus goes back where it was. */
export class Panel {
    constructor(anchor, content, { label, role = "dialog", width, onClose } = {}) {
        this.before = document.activeElement;
        this.onClose = onClose;
        this.element = labelled("div", { role, "aria-label": label, popover: "auto" }, { className: "vls-pop" }, content);
        for (const kind of ["pointerdown", "pointermove", "pointerup", "mousedown", "wheel", "contextmenu", "keydown",
            "copy", "paste"]) {
            this.element.addEventListener(kind, (event) => event.stopPropagation());
        }
        this.element.addEventListener("keydown", (event) => {
            if (event.key === "Escape") {
                event.preventDefault();
                this.close();
            } else if (event.key === "Tab") {
                this.leave(event);
            }
        });
        this.element.addEventListener("toggle", (event) => event.newState === "closed" && this.gone());
        document.body.append(this.element);
        if (width) {
            this.element.style.width = `${width}px`;
        }
        this.element.showPopover();
        this.place(anchor);
    }

    /** Below the anchor, above it where there is more room, beside the edge of the page where neither is enough. */
    place(anchor) {
        const style = this.element.style;
        style.maxHeight = `${innerHeight - 16}px`;
        const { left, top, bottom } = anchor.getBoundingClientRect?.() ?? anchor;
        const { offsetWidth, offsetHeight } = this.element;
        const below = innerHeight - bottom - 12 >= offsetHeight || top - 12 < offsetHeight;
        style.left = `${Math.max(8, Math.min(left, innerWidth - offsetWidth - 8))}px`;
        style.top = below ? `${Math.max(8, Math.min(bottom + 4, innerHeight - offsetHeight - 8))}px` : "auto";
        style.bottom = below ? "auto" : `${innerHeight - top + 4}px`; // stays there when it becomes lower
    }

    /** Tab beyond the last control, or before the first, goes back to where it was opened. */
    leave(event) {
        const stops = [...this.element.querySelectorAll("button, input, select, [tabindex='0']")]
            .filter((one) => !one.disabled && one.checkVisibility());
        const at = stops.indexOf(document.activeElement);
        if (event.shiftKey ? at <= 0 : at === stops.length - 1) {
            event.preventDefault();
            this.close();
        }
    }

    close() {
        this.element.hidePopover?.();
        this.gone();
    }

    gone() {
        if (this.element.isConnected) {
            const inside = this.element.contains(document.activeElement) || document.activeElement === document.body;
            this.element.remove();
            if (inside && this.before?.isConnected) {
                this.before.focus({ preventScroll: true });
            }
            this.onClose?.();
        }
    }
}

/** A choice of one among a few words, as a panel: [[value, words], ...]. */
export function openMenu(anchor, label, choices, chosen, choose) {
    const items = choices.map(([value, words]) => labelled(
        "button", { role: "menuitemradio", "aria-checked": value === chosen },
        { className: "vls-item", onclick: () => (panel.close(), choose(value)) }, [sign("check"), words],
    ));
    const menu = element("div", { className: "vls-menu" }, items);
    const panel = new Panel(anchor, [menu], { label, role: "menu" });
    menu.onkeydown = (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (step) {
            event.preventDefault();
            items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
        }
    };
    items[Math.max(0, choices.findIndex(([value]) => value === chosen))].focus();
}

/** A number: dragged sideways, stepped by its buttons and arrow keys, typed after a click, Enter or a digit.
    `onDrag` hears every change of a drag, `onChange` the end of each. */
export class NumberField {
    constructor({ label, value, low, high, step, fine, full, digits = 2, unit = "", part = "", onDrag, onChange }) {
        Object.assign(this, { value, low, high, step, fine, full, digits, unit, onDrag, onChange });
        this.shown = element("span", { className: "vls-value" });
        this.fill = element("span", { className: "vls-fill" });
        const button = (name, title) =>
            labelled("span", { "aria-hidden": "true" }, { className: "vls-step", title }, [sign(name)]);
        this.less = button("minus", "Less");
        this.more = button("plus", "More");
        this.element = labelled(
            "div",
            { role: "spinbutton", "aria-label": label, "aria-valuemin": low, "aria-valuemax": high, "data-part": part },
            { className: "vls-number", tabIndex: 0, title: `${label}: drag, type, or use the arrow keys` },
            [this.fill, this.less, this.shown, this.more],
        );
        this.element.addEventListener("pointerdown", (event) => this.press(event));
        this.element.addEventListener("keydown", (event) => this.key(event));
        this.show();
    }

    rounded(value) {
        const clear = Math.max(this.low, Math.min(this.high, value));
        return Number(clear.toFixed(this.digits + 2));
    }

    show() {
        const text = this.value.toFixed(this.digits);
        this.shown.textContent = `${Number(text) === this.value ? text : this.value}${this.unit}`;
        this.element.setAttribute("aria-valuenow", this.value);
        this.element.setAttribute("aria-valuetext", this.shown.textContent);
        this.fill.style.width = `${Math.min(100, (100 * Math.abs(this.value)) / this.full)}%`;
        this.fill.classList.toggle("vls-minus", this.value < 0);
    }

    set(value, told = true) {
        const before = this.value;
        this.value = this.rounded(value);
        this.show();
        if (told && this.value !== before) {
            this.onChange(this.value);
        }
    }

    /** Steps go to the next whole step: from 0.83 to 0.85, not to 0.88. */
    stepped(way, step = this.step) {
        const steps = this.value / step;
        const near = Math.abs(steps - Math.round(steps)) < 1e-6 ? Math.round(steps) : null;
        this.set((near === null ? (way > 0 ? Math.ceil(steps) : Math.floor(steps)) : near + way) * step);
    }

    press(event) {
        if (event.button !== 0 || this.input) {
            return;
        }
        event.preventDefault(); // no text is selected, and the page's own drag does not begin
        this.element.focus({ preventScroll: true });
        const button = [this.less, this.more].find((one) => one === event.target);
        const from = { x: event.clientX, value: this.value };
        let dragged = false;
        this.element.setPointerCapture(event.pointerId);
        const move = (moved) => {
            const pixels = moved.clientX - from.x;
            dragged ||= Math.abs(pixels) >= PIXELS_TO_DRAG;
            if (dragged) {
                const each = moved.shiftKey ? this.fine / 10 : this.fine;
                this.set(Math.round((from.value + pixels * each) / each) * each, false);
                this.onDrag?.(this.value);
            }
        };
        const end = (ended) => {
            this.element.removeEventListener("pointermove", move);
            for (const kind of ["pointerup", "pointercancel"]) {
                this.element.removeEventListener(kind, end);
            }
            if (dragged) {
                this.value !== from.value && this.onChange(this.value);
            } else if (ended.type === "pointerup" && button) {
                this.stepped(button === this.more ? 1 : -1);
            } else if (ended.type === "pointerup") {
                this.edit(String(this.value));
            }
        };
        this.element.addEventListener("pointermove", move);
        this.element.addEventListener("pointerup", end);
        this.element.addEventListener("pointercancel", end);
    }

    key(event) {
        if (this.input || event.altKey || event.ctrlKey || event.metaKey) {
            return;
        }
        const way = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
        const leap = { PageUp: 1, PageDown: -1 }[event.key];
        if (way) {
            this.stepped(way, event.shiftKey ? this.fine : this.step);
        } else if (leap) {
            this.set(this.value + leap * this.step * 10);
        } else if (event.key === "Enter") {
            this.edit(String(this.value));
        } else if (/^[-+.,\d]$/.test(event.key)) {
            this.edit(event.key, false);
        } else {
            return;
        }
        event.preventDefault();
        event.stopPropagation();
    }

    edit(text, select = true) {
        this.input = labelled(
            "input", { "aria-label": this.element.ariaLabel, inputmode: "decimal" }, { type: "text", value: text },
        );
        const input = this.input;
        this.shown.replaceWith(input);
        const end = (keep, focus) => {
            if (this.input !== input) {
                return;
            }
            this.input = null;
            input.replaceWith(this.shown);
            if (focus) {
                this.element.focus({ preventScroll: true });
            }
            const typed = Number(input.value.replace(",", ".").replace(this.unit, "").trim() || Number.NaN);
            if (keep && Number.isFinite(typed)) {
                this.set(typed);
            }
        };
        input.onblur = () => end(true, false);
        input.onkeydown = (event) => {
            if (event.key === "Enter" || event.key === "Escape") {
                event.preventDefault();
                event.stopPropagation();
                end(event.key === "Enter", true);
            }
        };
        input.focus({ preventScroll: true });
        if (select) {
            input.select();
        }
    }
}
