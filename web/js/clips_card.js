/* One clip on the review page: its picture, whether it is used, its caption. */

import { api } from "../../../scripts/api.js";
import { ask, element } from "./clips_server.js";

const SAVE_AFTER = 700; // milliseconds without a key
const PREVIEW_AFTER = 200; // milliseconds of pointing

/** A clip's picture: its middle frame, and the clip itself while it is pointed at or played. One plays at a time. */
export class Screen {
    static playing = null;

    constructor(folder, clip) {
        this.clip = clip;
        const place = `folder=${encodeURIComponent(folder)}&name=${encodeURIComponent(clip.name)}&at=${clip.stamp}`;
        this.source = api.apiURL(`/video_lora/clip?${place}`);
        const still = element("img", { loading: "lazy", alt: "", src: api.apiURL(`/video_lora/still?${place}`) });
        still.onerror = () => {
            still.hidden = true;
            this.say("No frame of this file can be read: it will be left out.");
        };
        this.note = element("div", { className: "vls-note", hidden: true });
        this.box = element("div", { className: "vls-screen" }, [still, this.note]);
        if (clip.kind === "video") {
            const label = `Play ${clip.name}`;
            this.button = element("button", { className: "vls-play", textContent: "▶", title: label });
            this.button.ariaLabel = label;
            this.button.onclick = () => this.play(true);
            this.box.append(this.button);
            this.box.onmouseenter = () => (this.timer = setTimeout(() => this.play(false), PREVIEW_AFTER));
            this.box.onmouseleave = () => this.leave();
        }
    }

    say(text) {
        this.note.textContent = text;
        this.note.hidden = false;
    }

    /** `stay`: with sound and controls until another is played; else silent, while it is pointed at. */
    play(stay) {
        clearTimeout(this.timer);
        if (this.video) {
            if (stay && !this.stays) {
                Object.assign(this.video, { muted: false, controls: true });
                this.stays = true;
                this.button.hidden = true;
                this.video.focus();
            }
            return;
        }
        if (!stay && Screen.playing?.stays) {
            return;
        }
        Screen.playing?.stop();
        Screen.playing = this;
        this.stays = stay;
        this.video = element("video", {
            src: this.source, loop: true, muted: !stay, controls: stay, playsInline: true, title: this.clip.name,
        });
        this.video.onerror = () => {
            this.stop();
            this.say("This browser cannot play this kind of file. It is used all the same.");
        };
        this.box.append(this.video);
        this.button.hidden = stay;
        this.video.play().catch(() => {}); // what cannot be played has told onerror
        if (stay) {
            this.video.focus();
        }
    }

    leave() {
        clearTimeout(this.timer);
        if (!this.stays) {
            this.stop();
        }
    }

    stop() {
        if (this.video) {
            const video = this.video;
            this.video = null;
            video.onerror = null;
            video.pause();
            video.removeAttribute("src");
            video.load(); // lets go of the connection
            video.remove();
        }
        this.stays = false;
        this.button.hidden = false;
        Screen.playing = Screen.playing === this ? null : Screen.playing;
    }
}

/** One clip on the page. */
export class Card {
    constructor(page, clip) {
        this.page = page;
        this.clip = clip;
        this.screen = new Screen(page.folder, clip);
        this.use = element("input", { type: "checkbox", checked: !clip.excluded });
        this.use.onchange = () => this.setUsed(this.use.checked);
        this.text = element("textarea", {
            value: clip.caption, rows: 4, spellcheck: true, placeholder: "No caption",
            title: "The caption. Several captions: a line of --- between them. Ctrl+Enter goes to the next clip.",
        });
        this.text.ariaLabel = `Caption of ${clip.name}`;
        this.text.oninput = () => this.saveSoon();
        this.text.onchange = () => this.save();
        this.text.onkeydown = (event) => {
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
                event.preventDefault();
                page.next(this);
            }
        };
        this.state = element("span", { className: "vls-state" });
        const name = element("span", { className: "vls-name", textContent: clip.name, title: clip.name });
        const use = element("label", { title: "Unticked, the clip is left out; its file stays." }, [this.use, "Use"]);
        this.remark = element("div", {
            className: "vls-remark", textContent: clip.notes.join("; "), hidden: !clip.notes.length,
        });
        this.element = element("article", { className: "vls-card" }, [
            this.screen.box, element("div", { className: "vls-line" }, [name, this.state, use]), this.remark, this.text,
        ]);
        this.element.ariaLabel = clip.name;
        this.show();
    }

    show() {
        this.element.classList.toggle("vls-out", this.clip.excluded);
        this.use.checked = !this.clip.excluded;
    }

    say(text, wrong = false) {
        this.state.textContent = wrong ? "Not saved" : text;
        this.state.title = text;
        this.state.classList.toggle("vls-wrong", wrong);
    }

    saveSoon() {
        clearTimeout(this.timer);
        this.say("…");
        this.timer = setTimeout(() => this.save(), SAVE_AFTER);
    }

    /** Write the caption; resolves to whether the file holds what is shown. */
    save() {
        clearTimeout(this.timer);
        this.saving = (this.saving ?? Promise.resolve()).then(() => this.write());
        return this.saving;
    }

    async write() {
        const caption = this.text.value;
        if (caption === this.clip.caption) {
            this.say("");
            return true;
        }
        try {
            const { changes, failed } = await ask("captions", {
                folder: this.page.folder, changes: [{ name: this.clip.name, caption, seen: this.clip.caption }],
            });
            if (failed[this.clip.name]) {
                throw new Error(failed[this.clip.name]);
            }
            this.clip.caption = changes[0].after;
            this.remark.hidden = true; // it spoke of the text that stood there
        } catch (error) {
            this.say(error.message, true);
            this.page.say(error.message, true);
            return false;
        }
        if (document.activeElement !== this.text) {
            this.text.value = this.clip.caption;
        }
        this.say("Saved");
        this.page.count();
        return true;
    }

    setCaption(caption) {
        this.clip.caption = this.text.value = caption;
        this.say("");
    }

    /** No longer on the page. */
    drop() {
        clearTimeout(this.timer);
    }

    async setUsed(used) {
        try {
            await ask("excluded", { folder: this.page.folder, names: [this.clip.name], excluded: !used });
            this.clip.excluded = !used;
            this.page.say(`${this.clip.name} is ${used ? "used" : "left out"}.`);
        } catch (error) {
            this.page.say(error.message, true);
        }
        this.show();
        this.page.count();
    }
}
