// The embedding map as an anywidget. Python puts the style sheet in place of CSS_TEXT.

function render({ model, el }) {
  const root = element("div");
  let map = null;
  el.append(element("style", CSS_TEXT), root);
  const host = {
    open: (id) => model.send({ want: "open", id }), thumbs: (ids) => model.send({ want: "thumbs", ids }), project: (how) => model.send({ want: "project", how }),
    select: (ids) => { model.set("selected", ids); model.save_changes(); },
  };
  function build() {
    if (!model.get("data").captions) return; // the images are still being encoded
    map?.stop();
    root.replaceChildren();
    map = makeMap(root, { ...host, data: model.get("data"), color: model.get("color") });
    if (model.get("selected").length) map.choose(model.get("selected"));
  }
  build();
  model.on("change:data change:color", build);
  model.on("change:selected", () => map?.choose(model.get("selected")));
  model.on("msg:custom", ({ thumbs }) => map?.thumbs(thumbs));
  return () => { map?.stop(); model.off(null, null, null); };
}

export default { render };
