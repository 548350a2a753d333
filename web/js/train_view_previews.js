/* The clips that a run has made to look at: those of one step side by side, the newest unless somebody looks back. */

import { api } from "../../../scripts/api.js";
import { counted, element } from "./clips_server.js";
import { labelled } from "./stack_parts.js";

export const PREVIEWS_HEIGHT = 168;

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** The clips of each step together, in order. */
function byStep(clips) {
    const steps = new Map();
    for (const clip of clips) {
        const key = `${clip.expert}/${clip.step}`;
        steps.set(key, [...(steps.get(key) ?? []), clip]);
    }
    return [...steps.values()];
}

/** Where a clip is, made anew for every run of its name: browsers would show the one before. */
function address({ path, made }) {
    return api.apiURL(`/view?${new URLSearchParams({ ...path, made })}`);
}

export class PreviewStage {
    constructor() {
        Object.assign(this, { steps: [], at: 0, shown: "" });
        const turn = (label, sign, by) => labelled("button", { "aria-label": label, title: label },
            { textContent: sign, onclick: () => this.go(this.at + by) });
        this.back = turn("Preview before", "‹", -1);
        this.on = turn("Preview after", "›", 1);
        this.title = labelled("span", { "aria-live": "polite" }, { className: "vls-run-which" });
        this.clips = element("div", { className: "vls-run-clips" });
        this.element = labelled("div", { role: "group", "aria-label": "Previews" }, { className: "vls-run-previews" }, [
            this.clips, element("div", { className: "vls-run-turn" }, [this.back, this.title, this.on]),
        ]);
    }

    get empty() {
        return !this.steps.length;
    }

    /** What the server has of them; whoever looks at the newest goes on to do so. */
    take(clips = []) {
        const newest = this.at >= this.steps.length - 1;
        this.steps = byStep(clips);
        this.go(newest ? this.steps.length - 1 : this.at);
    }

    go(place) {
        this.at = Math.max(0, Math.min(place, this.steps.length - 1));
        const clips = this.steps[this.at] ?? [];
        const key = clips.map(address).join();
        if (key !== this.shown) {
            this.shown = key;
            this.clips.replaceChildren(...clips.map((clip) => this.video(clip, clips.length)));
        }
        this.title.textContent = clips.length ? this.titleOf(clips) : "";
        this.back.disabled = this.at === 0;
        this.on.disabled = this.at >= this.steps.length - 1;
    }

    titleOf([{ step, expert }]) {
        const of = this.steps.length > 1 ? ` (${this.at + 1} of ${this.steps.length})` : "";
        const when = step ? `after ${counted(step.toLocaleString("en"), "step")}` : "before training";
        return `Preview ${[expert.replaceAll("_", " "), when].filter(Boolean).join(", ")}${of}`;
    }

    video(clip, count) {
        const moving = !still.matches;
        const video = labelled("video", { "aria-label": `Preview ${clip.number} of ${count}`, playsinline: "" }, {
            src: address(clip), muted: true, loop: true, autoplay: moving, controls: !moving, tabIndex: 0,
            disablePictureInPicture: true,
        });
        let kept = !moving; // once reached by the keyboard they stay: taken away, they would take the focus with them
        video.addEventListener("focus", () => (kept = video.controls = true));
        video.addEventListener("pointerenter", () => (video.controls = true));
        video.addEventListener("pointerleave", () => (video.controls = kept));
        return video;
    }
}
