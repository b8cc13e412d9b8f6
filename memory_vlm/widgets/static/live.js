// The explorer as an anywidget: the kernel sends the maps of an image once, layer by layer; all else happens in the browser.

function render({ model, el }) {
  const style = element("style", CSS), root = element("div"), known = {};
  const state = () => Object.fromEntries(NAMES.map((n) => [n, model.get(n)]));
  let mine = false, wanted = -1;
  const host = {
    count: model.get("count"), models: model.get("models"), state: state(),
    want: (i) => { wanted = i; model.send({ want: "image", image: i }); },
    thumbs: (ids) => model.send({ want: "thumbs", ids }),
    order: (by) => model.send({ want: "order", by }),
    add: async (file) => model.send({ want: "add" }, undefined, [await file.arrayBuffer()]),
    effect: () => model.send({ want: "effect" }),
    stop: () => model.send({ want: "stop" }),
    score: model.get("models").some((m) => m.text), width: model.get("width"),
    save: () => model.send({ want: "page" }),
    set: (changes) => { mine = true; for (const [n, v] of Object.entries(changes)) model.set(n, v); model.save_changes(); mine = false; },
  };
  el.append(style, root);
  const named = () => root.classList.add(...(model.get("_dom_classes") ?? [])); // where the explorer stands, its image is hidden
  model.on("change:_dom_classes", named);
  const explorer = makeExplorer(root, host);
  named();
  function heard(message, buffers) {
    const { kind } = message;
    if (kind === "image" && message.image === wanted) {
      for (const side of message.data.sides) side.blocks = new Array(side.layers);
      Object.assign(known, { data: message.data, done: 0, all: message.layers });
      explorer.show(message.data);
      explorer.progress(0, message.layers);
    } else if (kind === "layer" && message.image === wanted && known.data?.index === wanted) {
      let next = 0;
      const block = { heads: message.heads };
      for (const way of ["reads", "read_by"]) if (message[way]) { const b = buffers[next++]; block[way] = { max: message[way], data: new Uint8Array(b.buffer ?? b, b.byteOffset ?? 0, b.byteLength) }; }
      known.data.sides[message.side].blocks[message.layer] = block;
      explorer.progress(++known.done, known.all);
    } else if (kind === "thumbs") explorer.thumbs(message.ids, message.items);
    else if (kind === "order") explorer.ordered(message.by, message.ids);
    else if (kind === "progress") explorer.progress(message.done, message.all, message.work);
    else if (kind === "score" && message.image === wanted) explorer.scored(message.caption, message.found);
    else if (kind === "again") host.want(model.get("image")); // the weights have changed
    else if (kind === "page") {
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([message.text], { type: "text/html" })), download: "explorer.html" });
      link.click();
    }
  }
  model.on("msg:custom", heard);
  for (const n of NAMES) model.on(`change:${n}`, () => { if (!mine) explorer.take({ [n]: model.get(n) }); });
  model.on("change:count", () => explorer.counted(model.get("count")));
  const tell = () => explorer.say(model.get("message"), model.get("problem_shown"));
  model.on("change:message", tell);
  if (model.get("message")) tell();
  return () => { explorer.stop(); model.off(null, null, null); };
}

export default { render };
