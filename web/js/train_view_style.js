/* How a run looks on Train LoRA: ComfyUI's own colours, nothing below 11 pixels. */

import { COLOURS } from "./clips_style.js";
import { PREVIEWS_HEIGHT } from "./train_view_previews.js";

export const TRAIN_STYLE = `
.vls-run { ${COLOURS} font-family: Inter, system-ui, "Segoe UI", Roboto, sans-serif; font-size: 12px; line-height: 1.35;
    --vls-held: color-mix(in srgb, #f08c00 74%, var(--fg-color, #fff));
    --vls-smooth: color-mix(in srgb, #3d8bdb 86%, var(--fg-color, #fff));
    display: flex; flex-direction: column; gap: 6px; min-width: 0; box-sizing: border-box; padding: 8px 10px;
    border-radius: 8px; background: var(--vls-field); overflow: hidden; }
.vls-run.vls-canvas { --vls-field: var(--comfy-input-bg, #222); }
.vls-run [hidden] { display: none !important; }
.vls-run > * { flex: none; }
.vls-run button { font: inherit; color: inherit; background: none; border: 0; margin: 0; padding: 0; cursor: pointer; }
.vls-run :focus-visible { outline: 2px solid var(--vls-accent); outline-offset: 1px; }
.vls-run-none { flex: 1; display: grid; place-items: center; text-align: center; color: var(--vls-quiet); }

.vls-run-head { display: flex; gap: 10px; align-items: baseline; white-space: nowrap; }
.vls-run-state { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; font-weight: 500; }
.vls-run-steps, .vls-run-figures b { font-variant-numeric: tabular-nums; }
.vls-run-bar { height: 3px; border-radius: 2px; background: var(--vls-line); overflow: hidden; }
.vls-run-bar span { display: block; height: 100%; border-radius: 2px; background: var(--vls-accent);
    transition: width 0.25s linear; }

.vls-run-top { display: flex; align-items: center; gap: 4px 12px; min-height: 20px; white-space: nowrap;
    color: var(--vls-quiet); }
.vls-run-tabs { display: flex; gap: 2px; margin-left: -7px; }
.vls-run .vls-run-tabs button { height: 20px; padding: 0 7px; border-radius: 5px; }
.vls-run .vls-run-tabs button:hover { background: color-mix(in srgb, var(--fg-color, #fff) 10%, transparent); }
.vls-run .vls-run-tabs button[aria-pressed=true] { color: var(--vls-text);
    background: color-mix(in srgb, var(--fg-color, #fff) 13%, transparent); }
.vls-run-legend { flex: 1; min-width: 0; display: flex; justify-content: flex-end; gap: 10px; overflow: hidden;
    font-variant-numeric: tabular-nums; }
.vls-run-legend i { display: inline-block; width: 12px; height: 2px; border-radius: 1px; vertical-align: 3.5px;
    margin-right: 5px; background: var(--vls-smooth); }
.vls-run-legend .vls-raw i { background: color-mix(in srgb, var(--fg-color, #fff) 45%, transparent); height: 1px; }
.vls-run-legend .vls-held i { width: 6px; height: 6px; border-radius: 50%; vertical-align: 1.5px;
    background: var(--vls-held); }

.vls-run .vls-run-picture { flex: 1 1 0; min-height: 60px; position: relative; }
.vls-run svg { position: absolute; inset: 0; width: 100%; height: 100%; display: block; overflow: visible; }
.vls-run svg text { font-size: 11px; fill: var(--vls-quiet); font-variant-numeric: tabular-nums; }
.vls-run svg line { stroke: var(--vls-line); stroke-width: 1; }
.vls-run svg path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
.vls-run svg .vls-raw { stroke: color-mix(in srgb, var(--fg-color, #fff) 26%, transparent); stroke-width: 1; }
.vls-run svg .vls-raw.vls-dense { stroke: color-mix(in srgb, var(--fg-color, #fff) 13%, transparent); }
.vls-run svg .vls-smooth { stroke: var(--vls-smooth); stroke-width: 2; }
.vls-run svg .vls-held { stroke: var(--vls-held); stroke-width: 1; stroke-dasharray: 2 3; }
.vls-run svg circle { fill: var(--vls-held); stroke: var(--vls-field); stroke-width: 1.5; }
.vls-run svg circle.vls-now { fill: var(--vls-smooth); }
.vls-run svg .vls-level { stroke-width: 1.75; }
.vls-run svg .vls-part { stroke: var(--vls-quiet); stroke-dasharray: 3 3; opacity: 0.6; }
.vls-run svg .vls-cross { stroke: var(--vls-quiet); opacity: 0.7; }

.vls-run-figures { display: grid; grid-template-columns: repeat(4, auto); justify-content: space-between; margin: 0;
    gap: 0 10px; white-space: nowrap; }
.vls-run-figures div { min-width: 0; }
.vls-run-figures dt { color: var(--vls-quiet); font-size: 11px; }
.vls-run-figures dd { margin: 0; font-weight: 500; font-variant-numeric: tabular-nums; }
.vls-run-previews { height: ${PREVIEWS_HEIGHT - 6}px; display: flex; flex-direction: column; gap: 4px; }
.vls-run-clips { flex: 1; min-height: 0; display: flex; gap: 4px; justify-content: center; }
.vls-run-clips video { flex: 1 1 0; min-width: 0; height: 100%; object-fit: contain; border-radius: 5px;
    background: #000; }
.vls-run-turn { display: flex; align-items: center; gap: 6px; color: var(--vls-quiet); }
.vls-run-turn span { flex: 1; min-width: 0; text-align: center; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; font-variant-numeric: tabular-nums; }
.vls-run .vls-run-turn button { width: 24px; height: 24px; border-radius: 5px; font-size: 16px; line-height: 1; }
.vls-run .vls-run-turn button:hover:enabled { background: color-mix(in srgb, var(--fg-color, #fff) 10%, transparent); }
.vls-run .vls-run-turn button:disabled { opacity: 0.35; cursor: default; }
.vls-run-said { margin: 0; color: var(--vls-quiet); }
@media (prefers-reduced-motion: reduce) { .vls-run * { transition: none !important; } }`;
