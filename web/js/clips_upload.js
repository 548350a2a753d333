/* The strip on Load Clips: drop or choose footage and captions, which go to a folder under input/ by ComfyUI's own
   upload route; and the way to the review page. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { openReview } from "./clips_review.js";
import { counted, element, listClips } from "./clips_server.js";
import { addElement, after } from "./node_hooks.js";

const CLIPS = /\.(mp4|m4v|mov|mkv|webm|avi|gif|png|jpe?g|webp|bmp|tiff?)$/i;
const TEXTS = /\.txt$/i;
const TABLES = /\.(jsonl|json|csv)$/i;
const INPUT = "input/";
const REST_HEIGHT = 88; // with the margin that ComfyUI puts around an element
const ASKING_HEIGHT = 120;

const stem = (path) => path.replace(/\.[^./]*$/, "");

/** Every file in what was dropped, folders opened, as {file, path}. */
async function droppedFiles(transfer) {
    const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (!entries.length) {
        return [...transfer.files].map((file) => ({ file, path: file.name }));
    }
    const found = [];
    const walk = async (entry, place) => {
        const path = place + entry.name;
        if (entry.isFile) {
            found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
            return;
        }
        const reader = entry.createReader();
        for (let batch = [null]; batch.length; ) {
            batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
            for (const inner of batch) {
                await walk(inner, `${path}/`);
            }
        }
    };
    for (const entry of entries) {
        await walk(entry, "");
    }
    return found;
}

/** What of the files goes up, in which order, and what does not, and why. A folder around all of them is taken off. */
function sorted(files) {
    const tops = new Set(files.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
    const top = tops.size === 1 ? [...tops][0] : "";
    const inner = files.map(({ file, path }) => ({ file, path: top ? path.slice(top.length + 1) : path }));
    const shown = inner.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
    const of = (kind) => shown.filter(({ path }) => kind.test(path));
    const [clips, texts, tables] = [CLIPS, TEXTS, TABLES].map(of);
    const known = [...clips, ...texts, ...tables];
    const left = shown.filter((item) => !known.includes(item)).map(({ path }) => `${path}: not a clip or caption`);
    return { top, clips, texts, tables, left };
}

/** Send one file; its name there, which is another where another file has its name. Error, one sentence. */
async function send(file, path, folder, signal, overwrite = false) {
    const inside = path.includes("/") ? `/${path.slice(0, path.lastIndexOf("/"))}` : "";
    const form = new FormData();
    form.append("image", file, path.slice(path.lastIndexOf("/") + 1));
    form.append("type", "input");
    form.append("subfolder", folder + inside);
    if (overwrite) {
        form.append("overwrite", "true");
    }
    const answer = await api.fetchApi("/upload/image", { method: "POST", body: form, signal });
    if (answer.status === 413) {
        throw new Error("larger than this ComfyUI accepts (--max-upload-size): copy it into the folder yourself");
    }
    if (!answer.ok) {
        throw new Error(`refused by ComfyUI (${answer.status})`);
    }
    const { name } = await answer.json();
    return inside ? `${inside.slice(1)}/${name}` : name;
}

/** Send clips, captions of clips that have none there, and tables; how many went, and what did not and why. */
async function upload({ clips, texts, tables, left }, folder, { signal, onProgress }) {
    const told = [...left];
    const total = clips.length + texts.length + tables.length;
    let sent = 0;
    let done = 0;
    const there = await listClips(INPUT + folder).catch((error) => {
        if (error.status !== 400) {
            throw error;
        }
        return []; // there is no such folder yet
    });
    const named = new Map(there.map(({ name }) => [stem(name), stem(name)]));
    const captioned = new Set(there.filter(({ caption }) => caption).map(({ name }) => stem(name)));
    const one = async (item, path, overwrite) => {
        onProgress(done++, total);
        try {
            const name = await send(item.file, path, folder, signal, overwrite);
            sent += 1;
            return name;
        } catch (error) {
            if (signal.aborted) {
                throw error;
            }
            told.push(`${item.path}: ${error.message}`);
            return null;
        }
    };
    try {
        for (const item of clips) {
            const name = await one(item, item.path, false);
            if (name) {
                named.set(stem(item.path), stem(name));
                if (name !== item.path) {
                    told.push(`${item.path}: another file has this name, so it is now ${name}`);
                }
            }
        }
        for (const item of texts) {
            const clip = named.get(stem(item.path));
            if (clip === undefined || captioned.has(clip)) {
                told.push(`${item.path}: ${clip ? "the caption that is there is kept" : "no clip has its name"}`);
                done += 1;
            } else {
                await one(item, `${clip}.txt`, true);
            }
        }
        for (const item of tables) {
            await one(item, item.path, false);
        }
    } catch {
        told.unshift("Cancelled: what was sent stays.");
    }
    return { sent, told };
}

/** The folder's name as the upload route takes it: no way out, no characters that Windows lacks. */
function folderName(text) {
    const parts = text.replace(/[<>:"|?*\\\x00-\x1f]/g, "_").split("/").map((part) => part.trim());
    return parts.filter((part) => part && !part.startsWith(".")).join("/");
}

class Strip {
    constructor(node) {
        this.node = node;
        const input = (properties) =>
            element("input", { type: "file", multiple: true, hidden: true, tabIndex: -1, ...properties });
        const files = input({});
        const folder = input({ webkitdirectory: true });
        for (const chooser of [files, folder]) {
            chooser.onchange = () => {
                const chosen = [...chooser.files];
                chooser.value = "";
                this.offer(chosen.map((file) => ({ file, path: file.webkitRelativePath || file.name })));
            };
        }
        const button = (textContent, title, onclick) => element("button", { textContent, title, onclick });
        this.review = button("Review", "Play the clips, edit their captions, leave clips out", () => this.openReview());
        this.review.className = "vls-main";
        this.name = element("input", { type: "text", title: "Folder under input/ that the files go to" });
        this.name.ariaLabel = "Folder under input/";
        this.name.onkeydown = (event) => void (event.key === "Enter" && this.go.click()); // false would stop the key
        this.go = button("Upload", "Send the files to this folder", () => this.upload());
        this.go.className = "vls-main";
        this.buttons = element("div", {}, [
            button("Files…", "Upload clips and their captions", () => files.click()),
            button("Folder…", "Upload a folder of clips", () => folder.click()),
            this.review, files, folder,
        ]);
        this.asking = element("div", { hidden: true }, [
            element("span", { textContent: INPUT }), this.name, this.go,
            button("Cancel", "Upload nothing more", () => this.cancel()),
        ]);
        this.told = element("div", { className: "vls-told", role: "status" });
        this.element = element("div", { className: "vls-clips" }, [this.buttons, this.asking, this.told]);
        this.takeDrops();
        this.rest();
    }

    widget(name) {
        return this.node.widgets?.find((widget) => widget.name === name);
    }

    takeDrops() {
        const carries = (event) => event.dataTransfer?.types?.includes("Files");
        const take = async (event) => this.offer(await droppedFiles(event.dataTransfer));
        this.node.onDragOver = (event) => Boolean(carries(event));
        this.node.onDragDrop = (event) => {
            if (!carries(event)) {
                return false;
            }
            take(event);
            return true;
        };
        const over = (event, on) => {
            if (carries(event)) {
                event.preventDefault();
                event.stopPropagation();
                this.element.classList.toggle("vls-over", on);
            }
        };
        this.element.ondragover = (event) => over(event, true);
        this.element.ondragleave = (event) => over(event, false);
        this.element.ondrop = (event) => {
            over(event, false);
            take(event);
        };
    }

    say(text, { wrong = false, title = text } = {}) {
        this.told.textContent = text;
        this.told.title = title;
        this.told.classList.toggle("vls-wrong", wrong);
    }

    rest() {
        this.say("or drop clips and captions here");
    }

    show(asking) {
        const grown = this.asking.hidden ? 0 : ASKING_HEIGHT - REST_HEIGHT;
        this.asking.hidden = !asking;
        this.height = asking ? ASKING_HEIGHT : REST_HEIGHT;
        const [width, height] = this.node.computeSize();
        this.node.setSize([Math.max(this.node.size[0], width), Math.max(this.node.size[1] - grown, height)]);
        this.node.graph?.setDirtyCanvas(true, true);
    }

    /** Ask where the files are to go. */
    offer(files) {
        const given = sorted(files);
        const count = given.clips.length + given.texts.length + given.tables.length;
        if (!count) {
            this.say("There is no clip or caption among these files.", { wrong: true });
            return;
        }
        this.given = given;
        const current = String(this.widget("folder")?.value ?? "");
        const chosen = current.startsWith(INPUT) ? current.slice(INPUT.length) : "my_clips";
        this.name.value = folderName(given.top || chosen);
        this.name.disabled = this.go.disabled = false;
        const left = given.left.length ? `, ${given.left.length} left out` : "";
        this.say(`${counted(given.clips.length, "clip")}, ${counted(given.texts.length, "caption")}${left}`,
            { title: given.left.join("\n") });
        this.show(true);
        this.name.focus();
        this.name.select();
    }

    async upload() {
        const folder = folderName(this.name.value);
        if (!folder) {
            this.say("Give the folder a name.", { wrong: true });
            return;
        }
        this.name.value = folder;
        this.name.disabled = this.go.disabled = true;
        this.stop = new AbortController();
        const onProgress = (done, total) => this.say(`Uploading ${done + 1} of ${total}…`);
        const { sent, told } = await upload(this.given, folder, { signal: this.stop.signal, onProgress })
            .catch((error) => ({ sent: 0, told: [error.message] }));
        this.stop = null;
        this.show(false);
        if (sent) {
            this.choose(INPUT + folder);
        }
        const more = told.length ? `; ${told[0]}${told.length > 1 ? ` (and ${told.length - 1} more)` : ""}` : "";
        this.say(`${counted(sent, "file")} uploaded${more}`, { wrong: !sent, title: told.join("\n") });
    }

    cancel() {
        if (this.stop) {
            this.stop.abort();
        } else {
            this.show(false);
            this.rest();
        }
    }

    choose(folder) {
        const widget = this.widget("folder");
        if (Array.isArray(widget.options.values) && !widget.options.values.includes(folder)) {
            widget.options.values = [...widget.options.values, folder].sort();
        }
        widget.value = folder;
        widget.callback?.(folder);
        this.node.graph?.setDirtyCanvas(true, true);
    }

    async openReview() {
        const folder = this.widget("folder")?.value;
        if (!folder) {
            this.say("Choose or upload a folder first.", { wrong: true });
            return;
        }
        await openReview(folder, this.widget("trigger")?.value ?? "");
        this.review.focus();
    }
}

function addStrip(node) {
    const strip = new Strip(node);
    addElement(node, "footage", strip.element, { getMinHeight: () => strip.height, getMaxHeight: () => strip.height });
    strip.show(false);
    after(node, "onConfigure", () => strip.show(false));
}

app.registerExtension({
    name: "VideoLoraStudio.Clips",
    nodeCreated(node) {
        if (node.comfyClass === "VLSLoadClips") {
            addStrip(node);
        }
    },
});
