/* What the upload strip and the review page share: asking ComfyUI, and making elements. */

import { api } from "../../../scripts/api.js";

export function element(kind, properties = {}, children = []) {
    const made = Object.assign(document.createElement(kind), properties);
    made.append(...children);
    return made;
}

export function counted(number, word) {
    return `${number} ${word}${number === 1 ? "" : "s"}`;
}

/** What a route of ours answers. Error, one sentence, where it refuses or the server is away. */
export async function ask(route, fields) {
    const given = fields && {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields),
    };
    let answer;
    try {
        answer = await api.fetchApi(`/video_lora/${route}`, given);
    } catch {
        throw new Error("ComfyUI does not answer: nothing was changed.");
    }
    const told = await answer.json().catch(() => ({}));
    if (!answer.ok) {
        throw Object.assign(new Error(told.error ?? `ComfyUI answers ${answer.status}.`), { status: answer.status });
    }
    return told;
}

export function listClips(folder) {
    return ask(`review?folder=${encodeURIComponent(folder)}`).then((told) => told.clips);
}
