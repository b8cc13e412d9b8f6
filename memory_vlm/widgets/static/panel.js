// The message line of a panel. It also names the fields of its panel for screen readers: ipywidgets names only some.

function nameFields(panel) {
  for (const field of panel.querySelectorAll("input, textarea, select, .noUi-handle, .widget-image")) {
    if (field.getAttribute("aria-label") || field.alt || field.labels?.[0]?.textContent.trim()) continue;
    const box = field.closest(".widget-inline-hbox, .widget-inline-vbox, .jupyter-widgets"), row = field.closest(".mvlm-row");
    const name = row?.querySelector("[data-key]")?.dataset.key || box?.querySelector("label, .widget-label")?.textContent.trim() || box?.title || field.title || field.placeholder || (field.tagName === "IMG" && "attention maps of memory tokens, on the scale below"); // ipywidgets has no alt
    if (name) field.setAttribute(field.tagName === "IMG" ? "alt" : "aria-label", name);
  }
}

function render({ model, el }) {
  const line = el.appendChild(document.createElement("div"));
  line.setAttribute("role", "status");
  line.style.cssText = "line-height:1.4;color:var(--jp-ui-font-color1, inherit)";
  function draw() {
    const problem = model.get("problem");
    line.textContent = model.get("text");
    Object.assign(line.style, { padding: line.textContent ? "2px 0 2px 8px" : "0", fontWeight: problem ? "600" : "", borderLeft: problem && line.textContent ? "4px solid #d55e00" : "", paddingLeft: problem ? "8px" : "0" });
  }
  draw();
  model.on("change:text change:problem", draw);
  let watch = null; // the panel is known once the line stands in the page
  const placed = new ResizeObserver(() => {
    const panel = el.closest(".mvlm-panel");
    if (!panel || watch) return;
    const again = () => nameFields(panel);
    watch = new MutationObserver(again);
    watch.observe(panel, { childList: true, subtree: true });
    again();
  });
  placed.observe(el);
  return () => { placed.disconnect(); watch?.disconnect(); model.off(null, null, null); };
}

export default { render };
