"""What the browser tests ask of our elements on ComfyUI's page: can they be read, reached and named."""

from __future__ import annotations

import json

from browser import SHIFT, Page

LEAST_CONTRAST = 4.5
"""https://www.w3.org/TR/WCAG21/#contrast-minimum"""
SMALLEST = 11
"""Pixels of a text, as it is drawn where ComfyUI zooms to 1."""
CONTROLS = ("button, input:not([type=hidden]), select, textarea, a[href], video[controls], summary, [tabindex], "
            "[role=button], [role=switch], [role=spinbutton], [role=tab], [role=slider], [role=checkbox]")
REACHED_OTHERWISE = "[tabindex='-1'], [role=option], :disabled, [inert] *"
"""Choices are reached with the arrow keys from their search field, and files are chosen by a button."""

WITHIN_VIDEOS = 8
"""Stops that the browser's own buttons on a video make at most."""

TEXTS = """(() => {
    const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const over = (under, colour, opacity) => {
        paint.globalAlpha = 1; paint.fillStyle = `rgb(${under})`; paint.fillRect(0, 0, 1, 1);
        paint.globalAlpha = opacity; paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const shine = (colour) => colour.map((one) => one / 255)
        .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
        .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
    const zoom = (one) => one.getScreenCTM ? Math.abs(one.getScreenCTM().d)
        : one.getBoundingClientRect().height / (one.offsetHeight || 1) || 1;
    const found = [];
    const look = (one, text, style) => {
        const line = []; for (let at = one; at; at = at.parentElement) { line.unshift(at); }
        const top = line.findIndex((at) => at.matches('ROOTS'));
        const placed = line.slice(top).some((at) => at.matches('dialog, [popover]')); // not in the node
        const canvas = !LiteGraph.vueNodesMode && !placed;
        let [back, opacity] = [over([0, 0, 0], canvas ? LiteGraph.NODE_DEFAULT_BGCOLOR : 'transparent', 1), 1];
        for (const at of line.slice(canvas ? top : 0)) {
            const { opacity: own, backgroundColor } = getComputedStyle(at);
            opacity *= Number(own);
            back = over(back, backgroundColor, opacity);
        }
        const colour = one.namespaceURI.endsWith('svg') ? style.fill : style.color;
        const [light, dark] = [shine(back), shine(over(back, colour, opacity))].sort((a, b) => b - a);
        found.push([text.trim().slice(0, 40), parseFloat(style.fontSize) * zoom(one), (light + 0.05) / (dark + 0.05)]);
    };
    for (const one of document.querySelectorAll(':is(ROOTS), :is(ROOTS) *')) {
        if (!one.checkVisibility({ opacityProperty: true }) || one.closest(':disabled')) { continue; }
        const own = [...one.childNodes].map((child) => child.nodeType === 3 ? child.data : '').join(' ').trim();
        if (own && !one.closest('select')) { look(one, own, getComputedStyle(one)); }
        const typed = one.matches('select') ? one.selectedOptions[0]?.text
            : one.matches('textarea, input:not([type=checkbox], [type=file])') ? one.value : '';
        if (typed) { look(one, typed, getComputedStyle(one)); }
        if (one.placeholder && !one.value) {
            look(one, one.placeholder, getComputedStyle(one, '::placeholder'));
        }
    }
    return found;
})()"""

INERT = """[...document.querySelectorAll(':is(ROOTS) *')].filter((one) => one.checkVisibility() && !one.closest(
    '[aria-hidden=true], :disabled') && ['pointer', 'grab', 'ew-resize'].includes(getComputedStyle(one).cursor)
    && !one.closest('CONTROLS') && !one.closest('label, [role=option]')).map((one) => one.outerHTML.slice(0, 200))"""


def asked(expression: str, roots: str) -> str:
    return expression.replace("ROOTS", roots).replace("CONTROLS", CONTROLS)


def texts(page: Page, roots: str = ".vls-stack, .vls-pop") -> list[tuple[str, float, float]]:
    """Of every text in sight, not of controls that are switched off: its beginning, its size in pixels as drawn, its
    contrast (WCAG 2.1) with what lies behind it."""
    return [tuple(each) for each in page.evaluate(asked(TEXTS, roots))]


def unreadable(page: Page, roots: str = ".vls-stack, .vls-pop") -> list[tuple[str, float, float]]:
    return [(text, round(size, 1), round(contrast, 2)) for text, size, contrast in texts(page, roots)
            if round(size, 1) < SMALLEST or contrast < LEAST_CONTRAST]


def controls(page: Page, roots: str) -> list[str]:
    """Handles of the controls in sight that Tab must reach."""
    page.evaluate(f"window.asked = [...document.querySelectorAll(':is({roots}) *')].filter((one) => one.matches("
                  f"{json.dumps(CONTROLS)}) && !one.matches({json.dumps(REACHED_OTHERWISE)}) && one.checkVisibility())")
    count = page.evaluate("window.asked.length")
    return [page.call("Runtime.evaluate", expression=f"window.asked[{at}]")["result"]["objectId"]
            for at in range(count)]


def nameless(page: Page, roots: str) -> list[str]:
    """The controls for which a screen reader gets no name from the browser; and what only a mouse can press."""
    found = page.evaluate(asked(INERT, roots))
    for handle in controls(page, roots):
        (node, *_) = page.call("Accessibility.getPartialAXTree", objectId=handle, fetchRelatives=False)["nodes"]
        name = node.get("name", {}).get("value", "").strip()
        if node.get("ignored") or not any(letter.isalnum() for letter in name):
            found.append(page.ask(handle, "function () { return this.outerHTML.slice(0, 200); }"))
    return found


def not_reached(page: Page, roots: str, *, alone: bool = False) -> list[str]:
    """The controls that Tab does not come to: from the one before the first, or, where all else is out of reach while
    these are open (`alone`), from the first."""
    handles = controls(page, roots)
    assert handles, f"there is no control in {roots}"
    page.ask(handles[0], "function () { this.focus(); window.reached = new Set(); }")
    if not alone:
        page.press("Tab", SHIFT)
        assert page.evaluate("document.activeElement !== window.asked[0]"), "the focus cannot leave"
        page.press("Tab")
    stops = page.evaluate(f"{WITHIN_VIDEOS} * window.asked.filter((one) => one.matches('video')).length")
    for _ in range(len(handles) + stops):
        page.evaluate("window.reached.add(document.activeElement)")
        page.press("Tab")
    return page.evaluate("window.asked.filter((one) => !window.reached.has(one)).map((one) => "
                         "one.outerHTML.slice(0, 200))")
