"""What the browser tests ask of Stack LoRAs' elements: can their texts be read, has every control a name."""

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
    const node = getComputedStyle(document.querySelector('.vls-stack')).getPropertyValue('--vls-card');
    const found = [];
    for (const one of document.querySelectorAll('.vls-stack *, .vls-pop *')) {
        const own = [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !one.checkVisibility()) { continue; }
        const line = []; for (let at = one; at && at !== document.body; at = at.parentElement) { line.unshift(at); }
        let back = over([0, 0, 0], node, 1), opacity = 1;
        for (const at of line.slice(line.findIndex((at) => at.matches('.vls-stack, .vls-pop')))) {
            const style = getComputedStyle(at);
            opacity *= Number(style.opacity);
            back = over(back, style.backgroundColor, opacity);
        }
        const { color, fontSize } = getComputedStyle(one);
        const [light, dark] = [shine(back), shine(over(back, color, opacity))].sort((a, b) => b - a);
        const off = Boolean(one.closest('.vls-off, :disabled'));
        found.push([one.textContent.trim().slice(0, 30), parseFloat(fontSize), (light + 0.05) / (dark + 0.05), off]);
    }
    return found;
})()"""
"""Of every text in sight: its beginning, its size in pixels, its contrast (WCAG 2.1), whether it is switched off."""

NAMELESS = """[...document.querySelectorAll('.vls-stack, .vls-pop')].flatMap((root) => [...root.querySelectorAll(
    'button, input, [role=spinbutton], [role=list], [role=switch]')]).filter((one) => one.checkVisibility()
    && !(one.ariaLabel || one.labels?.length || one.textContent.trim())).map((one) => one.outerHTML)"""
"""The controls in sight that a screen reader has no words for."""
