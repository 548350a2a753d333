/* How the rows of Stack LoRAs look: ComfyUI's own colours, nothing below 12 pixels. */

import { COLOURS } from "./clips_style.js";

export const STACK_STYLE = `
.vls-stack, .vls-pop { ${COLOURS} font-family: Inter, system-ui, "Segoe UI", Roboto, sans-serif;
    --vls-hover: color-mix(in srgb, var(--fg-color, #fff) 12%, transparent);
    --vls-wrong: color-mix(in srgb, var(--error-text, #f44) 50%, var(--fg-color, #fff));
    --vls-warn: color-mix(in srgb, #e0a000 50%, var(--fg-color, #fff)); }
.vls-stack { display: flex; flex-direction: column; gap: 4px; font-size: 12px; line-height: 1.35; min-width: 0;
    box-sizing: border-box; }
.vls-stack.vls-canvas { --vls-field: var(--comfy-input-bg, #222); }
.vls-stack [hidden], .vls-pop [hidden] { display: none !important; }
.vls-stack button, .vls-pop button { font: inherit; color: inherit; background: none; border: 0; margin: 0; padding: 0;
    cursor: pointer; }
.vls-stack :focus-visible, .vls-pop :focus-visible { outline: 2px solid var(--vls-accent); outline-offset: -1px; }
.vls-stack svg, .vls-pop svg { width: 16px; height: 16px; display: block; fill: none; stroke: currentColor;
    stroke-width: 1.75; stroke-linecap: round; stroke-linejoin: round; pointer-events: none; }

.vls-head { display: flex; align-items: center; gap: 6px; height: 26px; padding: 0 4px 0 20px; flex: none;
    color: var(--vls-quiet); }
.vls-head .vls-count { flex: 1; min-width: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.vls-stack .vls-mode { display: flex; align-items: center; gap: 3px; height: 22px; padding: 0 5px 0 8px;
    border-radius: 6px; white-space: nowrap; }
.vls-mode svg { width: 13px !important; height: 13px !important; }
.vls-list { flex: 0 1 auto; display: flex; flex-direction: column; gap: 4px; overflow-y: auto; overflow-x: hidden;
    scrollbar-width: thin; scrollbar-color: var(--vls-line) transparent; }
.vls-row { position: relative; flex: none; background: var(--vls-field); border-radius: 8px; padding: 0 3px 0 2px; }
.vls-line1 { display: flex; align-items: center; gap: 5px; height: 30px; }
.vls-line2 { display: flex; align-items: center; gap: 6px; height: 22px; padding: 0 6px 4px 58px;
    color: var(--vls-quiet); white-space: nowrap; overflow: hidden; box-sizing: border-box; }
.vls-line2 > span { overflow: hidden; text-overflow: ellipsis; }
.vls-line2.vls-bad { color: var(--vls-wrong); }
.vls-stack svg.vls-curve, .vls-pop svg.vls-curve { flex: none; width: 60px; height: 18px; stroke: none; }
.vls-curve .vls-zero { stroke: var(--vls-line); stroke-width: 1; }
.vls-curve .vls-course { stroke: var(--vls-accent); stroke-width: 1.5;
    fill: color-mix(in srgb, var(--vls-accent) 30%, transparent); }
.vls-grip { flex: none; width: 14px; height: 30px; display: grid; place-items: center; cursor: grab; opacity: 0.5;
    touch-action: none; }
.vls-grip svg { width: 14px; fill: currentColor; stroke: none; }
.vls-row:hover .vls-grip { opacity: 1; }
.vls-stack .vls-switch { flex: none; width: 28px; height: 16px; border-radius: 8px; position: relative;
    background: color-mix(in srgb, var(--fg-color, #fff) 28%, transparent); transition: background 0.12s; }
.vls-switch::after { content: ""; position: absolute; top: 2px; left: 2px; width: 12px; height: 12px;
    border-radius: 50%; background: #fff; box-shadow: 0 0 2px rgb(0 0 0 / 40%); transition: left 0.12s; }
.vls-stack .vls-switch[aria-checked=true], .vls-stack .vls-switch[aria-checked=mixed] { background: var(--vls-accent); }
.vls-switch[aria-checked=true]::after { left: 14px; }
.vls-switch[aria-checked=mixed]::after { left: 8px; }
.vls-stack .vls-switch:focus-visible { outline-offset: 1px; }
.vls-stack .vls-pick { flex: 1; min-width: 0; height: 26px; padding: 0 6px; border-radius: 6px; text-align: left;
    white-space: nowrap; overflow: hidden; display: flex; align-items: center; gap: 6px; }
.vls-pick b { font-weight: 500; overflow: hidden; text-overflow: ellipsis; }
.vls-stack .vls-pick:hover, .vls-stack .vls-more:hover, .vls-step:hover, .vls-stack .vls-mode:hover,
.vls-stack .vls-add:hover { background: var(--vls-hover); }
.vls-tag { flex: none; font-size: 12px; line-height: 16px; padding: 0 5px; border-radius: 5px; color: var(--vls-quiet);
    background: var(--vls-hover); font-weight: 400; }
.vls-fit { flex: none; color: var(--vls-quiet); font-variant-numeric: tabular-nums; }
.vls-fit.vls-part { color: var(--vls-warn); }
.vls-stack .vls-more { flex: none; width: 24px; height: 26px; border-radius: 6px; display: grid; place-items: center; }
.vls-more svg { fill: currentColor; stroke: none; }
.vls-row.vls-off .vls-pick, .vls-row.vls-off .vls-number, .vls-row.vls-off .vls-fit { opacity: 0.75; }
.vls-row.vls-off :focus-visible { opacity: 1; }
.vls-row.vls-missing { box-shadow: inset 0 0 0 1px var(--vls-wrong); }
.vls-row.vls-missing .vls-pick, .vls-row.vls-missing .vls-line2 { color: var(--vls-wrong); }
.vls-stack .vls-offer { text-decoration: underline; text-underline-offset: 2px; color: var(--vls-text);
    overflow: hidden; text-overflow: ellipsis; }
.vls-row.vls-dragged { opacity: 0.5; }
.vls-row.vls-before::before, .vls-row.vls-after::before { content: ""; position: absolute; left: 0; right: 0;
    height: 2px; border-radius: 1px; background: var(--vls-accent); top: -3px; }
.vls-row.vls-after::before { top: auto; bottom: -3px; }
.vls-stack .vls-add { flex: none; height: 30px; border-radius: 8px; background: var(--vls-field); display: flex;
    align-items: center; justify-content: center; gap: 5px; }
.vls-problem { color: var(--vls-wrong); padding: 4px 8px; white-space: normal; }

.vls-number { flex: none; position: relative; display: flex; align-items: center; width: 92px; height: 26px;
    border-radius: 6px; overflow: hidden; cursor: ew-resize; touch-action: none; user-select: none;
    background: color-mix(in srgb, var(--fg-color, #fff) 6%, transparent); }
.vls-fill { position: absolute; inset: 0 auto 0 0; background: var(--vls-accent); opacity: 0.32;
    pointer-events: none; }
.vls-fill.vls-minus { background: #d9822b; }
.vls-step { position: relative; flex: none; width: 20px; height: 26px; display: grid; place-items: center;
    cursor: pointer; opacity: 0.75; }
.vls-step svg { width: 12px !important; height: 12px !important; }
.vls-value { position: relative; flex: 1; text-align: center; font-variant-numeric: tabular-nums; pointer-events: none; }
.vls-number input { position: relative; flex: 1; min-width: 0; width: 0; height: 24px; font: inherit; padding: 0;
    text-align: center; border: 0; outline: none !important; color: inherit; background: transparent;
    user-select: text; }

.vls-pop { position: fixed; inset: auto; margin: 0; padding: 0; border: 1px solid var(--vls-line); border-radius: 10px;
    background: var(--interface-menu-surface, var(--comfy-menu-bg, #202020)); box-shadow: 0 8px 28px rgb(0 0 0 / 38%);
    overflow: hidden; box-sizing: border-box; }
.vls-pop:popover-open { display: flex; flex-direction: column; }
.vls-pop input[type=text] { font: inherit; color: var(--vls-text); background: var(--vls-field); height: 32px;
    border: 1px solid var(--vls-line); border-radius: 7px; padding: 0 10px; box-sizing: border-box; min-width: 0; }
.vls-pop input::placeholder { color: var(--vls-quiet); opacity: 1; }
.vls-search { padding: 8px; display: flex; }
.vls-search input { flex: 1; }
.vls-options { flex: 0 1 auto; min-height: 0; overflow-y: auto; padding: 0 6px 6px; scrollbar-width: thin; max-height: 340px; }
.vls-option { display: flex; align-items: baseline; gap: 8px; padding: 5px 8px; border-radius: 6px; cursor: pointer;
    white-space: nowrap; }
.vls-option b { font-weight: 500; overflow: hidden; text-overflow: ellipsis; }
.vls-option i { font-style: normal; color: var(--vls-quiet); flex: 1 1 0; min-width: 0; text-align: right;
    overflow: hidden; text-overflow: ellipsis; }
.vls-option.vls-active { background: var(--vls-hover); box-shadow: inset 2px 0 0 var(--vls-accent); }
.vls-option[aria-selected=true] b { text-decoration: underline; text-underline-offset: 3px; }
.vls-nothing { padding: 8px 10px 12px; color: var(--vls-quiet); }

.vls-menu { padding: 5px; }
.vls-pop .vls-item { display: flex; align-items: center; gap: 8px; height: 30px; padding: 0 12px 0 8px;
    border-radius: 6px; text-align: left; white-space: nowrap; width: 100%; }
.vls-pop .vls-item:hover, .vls-pop .vls-item:focus { background: var(--vls-hover); }
.vls-item svg { visibility: hidden; }
.vls-item[aria-checked=true] svg { visibility: visible; }

.vls-about { width: 380px; outline: none !important; padding: 14px 16px; display: flex; flex-direction: column; gap: 12px; overflow-y: auto;
    box-sizing: border-box; max-width: calc(100vw - 16px); }
.vls-about h3 { margin: 0; font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
.vls-about h3 small { display: block; font-size: 12px; font-weight: 400; color: var(--vls-quiet); }
.vls-facts { display: flex; gap: 14px; }
.vls-facts dl { flex: 1; margin: 0; display: grid; grid-template-columns: max-content 1fr; gap: 3px 12px;
    align-content: start; }
.vls-facts dt { color: var(--vls-quiet); }
.vls-facts dd { margin: 0; overflow-wrap: anywhere; }
.vls-facts img, .vls-facts video { width: 128px; max-height: 128px; object-fit: cover; border-radius: 8px; flex: none;
    background: #000; align-self: flex-start; }
.vls-words { display: flex; flex-wrap: wrap; gap: 5px; align-items: center; }
.vls-words code { font: inherit; padding: 1px 7px; border-radius: 6px; background: var(--vls-hover);
    overflow-wrap: anywhere; user-select: text; }
.vls-form { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 8px 12px; align-items: center;
    border-top: 1px solid var(--vls-line); padding-top: 12px; }
.vls-form label, .vls-form > span { color: var(--vls-quiet); }
.vls-form > div { display: flex; flex-wrap: wrap; align-items: center; gap: 8px; }
.vls-form > div > select { flex: 1; }
.vls-form > div > input { flex: 1 0 100%; }
.vls-pop select { font: inherit; color: var(--vls-text); background: var(--vls-field); height: 32px; padding: 0 6px;
    border: 1px solid var(--vls-line); border-radius: 7px; }
.vls-curve-box { flex: none; width: 60px; height: 18px; }
.vls-form p { grid-column: 1 / -1; margin: 0; color: var(--vls-quiet); font-size: 12px; }
.vls-form p.vls-bad { color: var(--vls-wrong); }
.vls-acts { display: flex; flex-wrap: wrap; gap: 6px; border-top: 1px solid var(--vls-line); padding-top: 12px; }
.vls-pop .vls-act { height: 28px; padding: 0 10px; border-radius: 7px; background: var(--vls-hover); }
.vls-pop .vls-act:hover:enabled { background: color-mix(in srgb, var(--fg-color, #fff) 20%, transparent); }
.vls-pop .vls-act:disabled { opacity: 0.4; cursor: default; }
.vls-said { color: var(--vls-quiet); }
@media (prefers-reduced-motion: reduce) { .vls-stack * { transition: none !important; } }`;
