// What widgets hang onto the node that they are on.

/** Have a method of the node, or of a widget, do one thing more. */
export function after(owner, method, more) {
    const before = owner[method];
    owner[method] = function (...given) {
        const answer = before?.apply(this, given);
        more(...given);
        return answer;
    };
}
