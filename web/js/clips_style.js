/* How the review page and the upload strip of Load Clips look: ComfyUI's own colours, which Stack LoRAs has too;
   nothing below 12 pixels. */

export const COLOURS = `
    --vls-text: var(--input-text, #ddd);
    --vls-quiet: color-mix(in srgb, var(--fg-color, #fff) 82%, var(--bg-color, #202020));
    --vls-line: color-mix(in srgb, var(--fg-color, #fff) 14%, var(--bg-color, #202020));
    --vls-card: var(--component-node-background,
        color-mix(in srgb, var(--fg-color, #fff) 5%, var(--bg-color, #202020)));
    --vls-field: var(--component-node-widget-background, var(--comfy-input-bg, #222));
    --vls-accent: #3d8bdb; --vls-wrong: color-mix(in srgb, var(--error-text, #f44) 72%, var(--fg-color, #fff));
    font: 13px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--vls-text);`;

export const REVIEW_STYLE = `
.vls-review, .vls-clips { ${COLOURS} }
.vls-review { width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; padding: 0; border: 0;
    background: var(--bg-color, #202020); flex-direction: column; }
.vls-review[open] { display: flex; }
.vls-review::backdrop { background: rgb(0 0 0 / 60%); }
.vls-review [hidden] { display: none !important; }

.vls-review header, .vls-tools { display: flex; align-items: center; gap: 10px 16px; flex-wrap: wrap;
    padding: 12px 24px; }
.vls-review header { padding-top: 16px; padding-bottom: 4px; }
.vls-review h2 { font-size: 20px; font-weight: 600; margin: 0; color: var(--fg-color, #fff); }
.vls-folder { font-size: 14px; }
.vls-counts { color: var(--vls-quiet); flex: 1; white-space: pre; overflow: hidden; text-overflow: ellipsis; }
.vls-tools { border-bottom: 1px solid var(--vls-line); gap: 10px 28px; }
.vls-group { display: flex; align-items: center; gap: 8px 12px; flex-wrap: wrap; }
.vls-review label { display: inline-flex; align-items: center; gap: 6px; cursor: pointer; white-space: nowrap; }
.vls-field span { color: var(--vls-quiet); }

.vls-review button, .vls-clips button, .vls-review select, .vls-review input[type=text], .vls-clips input[type=text] {
    font: inherit; color: var(--vls-text); background: var(--vls-field); box-sizing: border-box;
    border: 1px solid var(--vls-line); border-radius: 6px; height: 30px; padding: 0 12px; }
.vls-review input[type=text] { width: 130px; padding: 0 9px; }
.vls-review button, .vls-clips button { cursor: pointer; background: var(--vls-card); }
.vls-review button:hover:enabled, .vls-clips button:hover:enabled {
    background: color-mix(in srgb, var(--fg-color, #fff) 13%, var(--bg-color, #202020)); }
.vls-review button:disabled, .vls-clips button:disabled { opacity: 0.45; cursor: default; }
.vls-review button.vls-main, .vls-clips button.vls-main { background: #2f6fb3; border-color: #2f6fb3; color: #fff; }
.vls-review button.vls-main:hover:enabled, .vls-clips button.vls-main:hover:enabled { background: #3a7fc8; }
.vls-review input[type=checkbox] { accent-color: var(--vls-accent); width: 15px; height: 15px; margin: 0; }
.vls-review :focus-visible, .vls-clips :focus-visible { outline: 2px solid var(--vls-accent); outline-offset: 1px; }

.vls-grid { flex: 1; overflow-y: auto; padding: 20px 24px; display: grid; gap: 20px; align-content: start;
    grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); grid-auto-rows: max-content;
    scrollbar-color: var(--vls-line) transparent; }
.vls-card { background: var(--vls-card); border: 1px solid var(--vls-line); border-radius: 10px; overflow: hidden;
    display: flex; flex-direction: column; }
.vls-card:focus-within { border-color: var(--vls-accent); }
.vls-screen { flex: none; position: relative; aspect-ratio: 16 / 9; background: #000; }
.vls-screen img, .vls-screen video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; }
.vls-note { position: absolute; inset: 0 0 auto; padding: 7px 12px; background: rgb(0 0 0 / 75%); color: #ddd;
    font-size: 12px; }
.vls-review button.vls-play { position: absolute; left: 10px; bottom: 10px; width: 34px; height: 34px;
    padding: 0 0 0 3px; border-radius: 50%; border-color: rgb(255 255 255 / 25%);
    background: rgb(0 0 0 / 55%); color: #fff; z-index: 1; }
.vls-line { display: flex; align-items: center; gap: 10px; padding: 9px 12px 7px; }
.vls-name { flex: 1; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; font-weight: 500; }
.vls-state { color: var(--vls-quiet); font-size: 12px; max-width: 50%; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; }
.vls-card textarea { font-family: inherit; font-size: 13px; line-height: 1.5; color: var(--vls-text); resize: vertical;
    background: var(--vls-field); border: 0; border-top: 1px solid var(--vls-line); padding: 9px 12px 11px;
    min-height: 96px; field-sizing: content; flex: 1; max-height: 320px; outline-offset: -2px !important; }
.vls-card textarea::placeholder { color: var(--vls-quiet); font-style: italic; }
.vls-remark { padding: 0 12px 8px; font-size: 12px; color: var(--vls-quiet); }
.vls-out .vls-screen :is(img, video) { opacity: 0.35; }
.vls-out textarea, .vls-out .vls-name { opacity: 0.75; }
.vls-out .vls-name { text-decoration: line-through; }
.vls-out:focus-within textarea { opacity: 1; }
.vls-status { padding: 9px 24px; min-height: 38px; box-sizing: border-box; border-top: 1px solid var(--vls-line);
    color: var(--vls-quiet); }
.vls-review .vls-wrong, .vls-clips .vls-wrong { color: var(--vls-wrong); }

.vls-clips { display: flex; flex-direction: column; justify-content: center; gap: 6px; padding: 6px;
    border: 1px dashed color-mix(in srgb, var(--vls-quiet) 55%, transparent);
    border-radius: 8px; box-sizing: border-box; font-size: 12px; }
.vls-clips.vls-over { border-color: var(--vls-accent);
    background: color-mix(in srgb, var(--vls-accent) 16%, transparent); }
.vls-clips > div { display: flex; gap: 6px; align-items: center; min-width: 0; }
.vls-clips [hidden] { display: none !important; }
.vls-clips button { height: 26px; padding: 0 9px; flex: 1; min-width: 0; white-space: nowrap; }
.vls-clips input[type=text] { height: 26px; padding: 0 7px; flex: 2; min-width: 60px; }
.vls-clips .vls-told { color: var(--vls-quiet); display: block; overflow: hidden; text-overflow: ellipsis;
    white-space: nowrap; line-height: 18px; text-align: center; }`;
