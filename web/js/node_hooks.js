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

let made = 0;

/** Put an element on a node as its last widget, in both of ComfyUI's renderers; its value is nobody's. `heights`:
    getMinHeight and, where it cannot be higher, getMaxHeight. */
export function addElement(node, name, element, heights) {
    const type = `vls_${name}_${made++}`; // Nodes 2.0 keeps the element of a widget of the same type when Undo makes anew
    const widget = node.addDOMWidget(name, type, element, { serialize: false, hideOnZoom: false, ...heights });
    // The panel of parameters at the side would draw the widget on a canvas of its own, and make it as narrow as that.
    Object.defineProperty(widget.options, "canvasOnly", { get: () => !LiteGraph.vueNodesMode, enumerable: true });
    Object.defineProperty(widget, "width", { get: () => undefined, set: () => {}, configurable: true });
    widget.serialize = false; // last in the node, so the saved values of the others keep their places
    return widget;
}
