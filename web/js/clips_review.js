/* The review page of Load Clips: play each clip, edit its caption, leave it out, replace words everywhere. All of it is
   kept in the text files beside the clips, so nothing here needs the browser to stay open. */

import { Card, Screen } from "./clips_card.js";
import { ask, counted, element, listClips } from "./clips_server.js";
import { REVIEW_STYLE } from "./clips_style.js";

const WORD = "[\\p{L}\\p{N}_]";
const FILTERS = [
    ["all", "All clips", () => true],
    ["bare", "Without a caption", (clip) => !clip.caption],
    ["out", "Left out", (clip) => clip.excluded],
    ["found", "With the text to find", (clip, page) => page.found(clip.caption) > 0],
    ["untriggered", "Without the trigger word", (clip, page) => !page.triggered(clip.caption)],
];

function pattern(text, matchCase, wholeWords) {
    const escaped = text.trim().split(/\s+/).join(" ").replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const bounded = wholeWords ? `(?<!${WORD})${escaped}(?!${WORD})` : escaped;
    return escaped ? new RegExp(bounded, matchCase ? "gu" : "giu") : null;
}

/** The page: one folder. */
class ReviewPage {
    constructor(folder, trigger) {
        this.folder = folder;
        this.cards = [];
        this.undoable = [];
        this.counts = element("span", { className: "vls-counts" });
        this.status = element("div", { className: "vls-status", role: "status" });
        this.grid = element("div", { className: "vls-grid" });
        this.makeTools(trigger);
        const title = element("h2", { textContent: "Review", id: "vls-review-title" });
        const close = element("button", { textContent: "Done", title: "Close (Esc)", className: "vls-main" });
        close.onclick = () => this.close();
        const reload = element("button", { textContent: "Reload", title: "Show the folder as it is now" });
        reload.onclick = () => this.load();
        this.dialog = element("dialog", { className: "vls-review" }, [
            element("header", {}, [
                title, element("span", { className: "vls-folder", textContent: folder }), this.counts, this.filter,
                this.undo, reload, close,
            ]),
            this.tools, this.grid, this.status,
        ]);
        this.dialog.setAttribute("aria-labelledby", title.id);
        this.dialog.oncancel = (event) => {
            event.preventDefault();
            this.close();
        };
        for (const kind of ["keydown", "keyup", "keypress", "paste", "copy", "cut", "wheel"]) {
            this.dialog.addEventListener(kind, (event) => event.stopPropagation()); // not for ComfyUI's shortcuts
        }
        for (const kind of ["dragover", "drop"]) {
            this.dialog.addEventListener(kind, (event) => {
                event.preventDefault();
                event.stopPropagation();
            });
        }
    }

    makeTools(trigger) {
        const changed = () => this.count();
        const field = (label, value, title) => {
            const input = element("input", { type: "text", value, title, oninput: changed });
            const shown = element("span", { textContent: label });
            return [input, element("label", { className: "vls-field" }, [shown, input])];
        };
        const tick = (label, title) => {
            const input = element("input", { type: "checkbox", onchange: changed });
            return [input, element("label", { title }, [input, label])];
        };
        const button = (textContent, title, onclick) => element("button", { textContent, title, onclick });
        const [find, findField] = field("Find", "", "Words to find in all captions");
        const [put, putField] = field("Replace with", "", "What to put in their place; empty takes them away");
        const [matchCase, caseTick] = tick("Match case", "Capital and small letters differ");
        const [words, wordsTick] = tick("Whole words", "cat is not found in category");
        const [word, wordField] = field("Trigger word", trigger, "The word that stands for what the LoRA learns");
        this.replace = button("Replace all", "Replace in the captions of all clips", () => this.replaceAll());
        this.insert = button("Insert", "Put it before every caption that lacks it", () => this.changeTrigger(true));
        this.remove = button("Remove", "Take it out of every caption", () => this.changeTrigger(false));
        this.undo = button("Undo", "Take back the last change made everywhere", () => this.takeBack());
        this.fields = { find, put, matchCase, words, word };
        find.onkeydown = put.onkeydown = (event) => void (event.key === "Enter" && this.replaceAll());
        this.filter = element("select", { title: "Which clips are shown", onchange: () => this.showFiltered() },
            FILTERS.map(([value, textContent]) => element("option", { value, textContent })));
        this.filter.ariaLabel = "Which clips are shown";
        this.tools = element("div", { className: "vls-tools" }, [
            element("div", { className: "vls-group" }, [findField, putField, caseTick, wordsTick, this.replace]),
            element("div", { className: "vls-group" }, [wordField, this.insert, this.remove]),
        ]);
    }

    async open() {
        document.body.append(this.dialog);
        this.dialog.showModal();
        await this.load();
        (this.cards[0]?.text ?? this.filter).focus({ preventScroll: true });
    }

    /** Show the folder as it is; what could not be written is dropped. */
    async load() {
        this.say("Looking at the folder…");
        try {
            const clips = await listClips(this.folder);
            Screen.playing?.stop();
            this.cards.forEach((card) => card.drop());
            this.cards = clips.map((clip) => new Card(this, clip));
            this.grid.replaceChildren(...this.cards.map((card) => card.element));
            this.undoable = [];
            this.unwritten = false;
            this.say(clips.length ? "" : "There is no clip in this folder yet: drop some on the node.");
        } catch (error) {
            this.say(error.message, true);
        }
        this.count();
        this.showFiltered();
    }

    /** Close once everything is written; where it cannot be, say why, and close when asked again. */
    async close() {
        if (!(await this.saved()) && !this.unwritten) {
            this.unwritten = true;
            this.say(`${this.status.textContent} Press Done again to close without saving it.`, true);
            return;
        }
        Screen.playing?.stop();
        this.cards.forEach((card) => card.drop());
        this.dialog.close();
        this.dialog.remove();
        this.closed();
    }

    async saved() {
        const written = await Promise.all(this.cards.map((card) => card.save()));
        return written.every(Boolean);
    }

    say(text, wrong = false) {
        this.status.textContent = text;
        this.status.classList.toggle("vls-wrong", wrong);
    }

    found(caption) {
        const { find, matchCase, words } = this.fields;
        const sought = pattern(find.value, matchCase.checked, words.checked);
        return sought ? (caption.match(sought) ?? []).length : 0;
    }

    triggered(caption) {
        const sought = pattern(this.fields.word.value, false, true);
        return sought ? sought.test(caption) : false;
    }

    /** Bring the figures and what can be pressed up to date. */
    count() {
        const clips = this.cards.map((card) => card.clip);
        const some = (test) => clips.filter(test).length;
        const parts = [counted(clips.length, "clip"), `${some((clip) => clip.caption)} with a caption`];
        if (some((clip) => clip.excluded)) {
            parts.push(`${some((clip) => clip.excluded)} left out`);
        }
        const word = this.fields.word.value.trim();
        if (word) {
            parts.push(`${word} in ${some((clip) => this.triggered(clip.caption))}`);
        }
        this.counts.textContent = parts.join("  ·  ");
        const hits = clips.map((clip) => this.found(clip.caption)).filter(Boolean);
        const total = hits.reduce((sum, hit) => sum + hit, 0);
        this.replace.textContent = this.fields.find.value.trim()
            ? `Replace all (${total} in ${counted(hits.length, "clip")})` : "Replace all";
        this.replace.disabled = !total;
        this.insert.disabled = this.remove.disabled = !word || !clips.length;
        const last = this.undoable.at(-1);
        this.undo.disabled = !last;
        this.undo.textContent = last ? `Undo (${counted(last.length, "clip")})` : "Undo";
        if (["found", "untriggered"].includes(this.filter.value)) {
            this.showFiltered();
        }
    }

    showFiltered() {
        const [, , fits] = FILTERS.find(([value]) => value === this.filter.value);
        for (const card of this.cards) {
            // the clip being edited stays in sight
            card.element.hidden = !fits(card.clip, this) && !card.element.contains(document.activeElement);
        }
    }

    next(card) {
        const shown = this.cards.filter((other) => !other.element.hidden);
        const following = shown[shown.indexOf(card) + 1] ?? shown[0];
        following.text.focus();
        following.element.scrollIntoView({ block: "nearest" });
    }

    replaceAll() {
        const { find, put, matchCase, words } = this.fields;
        return this.everywhere("replace", {
            find: find.value, put: put.value, match_case: matchCase.checked, whole_words: words.checked,
        });
    }

    changeTrigger(insert) {
        return this.everywhere("trigger", { trigger: this.fields.word.value, insert });
    }

    async everywhere(route, fields) {
        if (!(await this.saved())) {
            return;
        }
        try {
            const { changes, failed } = await ask(route, { folder: this.folder, ...fields });
            this.take(changes);
            if (changes.length) {
                this.undoable.push(changes);
            }
            const reasons = Object.values(failed);
            const none = "No caption had to be changed.";
            const said = changes.length ? `Changed ${counted(changes.length, "caption")}.` : none;
            this.say([said, ...reasons].join(" "), reasons.length > 0);
        } catch (error) {
            this.say(error.message, true);
        }
        this.count();
    }

    async takeBack() {
        if (!(await this.saved())) {
            return;
        }
        const back = this.undoable.at(-1).map(({ name, before, after }) => ({ name, caption: before, seen: after }));
        try {
            const { changes, failed } = await ask("captions", { folder: this.folder, changes: back });
            this.undoable.pop();
            this.take(changes);
            const reasons = Object.values(failed);
            this.say([`Took back ${counted(changes.length, "caption")}.`, ...reasons].join(" "), reasons.length > 0);
        } catch (error) {
            this.say(error.message, true);
        }
        this.count();
    }

    take(changes) {
        const now = new Map(changes.map((change) => [change.name, change.after]));
        for (const card of this.cards) {
            if (now.has(card.clip.name)) {
                card.setCaption(now.get(card.clip.name));
            }
        }
    }
}

/** Show the review page of a dataset folder; resolves when it is closed. */
export function openReview(folder, trigger = "") {
    return new Promise((resolve) => {
        const page = new ReviewPage(folder, trigger);
        page.closed = resolve;
        page.open();
    });
}

document.head.append(element("style", { textContent: REVIEW_STYLE }));
