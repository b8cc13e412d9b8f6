// An image whose cells can be chosen by mouse or keyboard: Python draws the image and receives the index of the chosen cell.

const STYLE = `
.mvlm-image { position: relative; display: inline-block; max-width: 100%; line-height: 0; cursor: crosshair; touch-action: manipulation; }
.mvlm-image:focus-visible { outline: 2px solid #56b4e9; outline-offset: 2px; }
.mvlm-image img { width: 100%; height: auto; border-radius: 3px; }
.mvlm-image div { position: absolute; display: none; box-sizing: border-box; pointer-events: none; }
.mvlm-image .hover { border: 1px solid #fff; box-shadow: 0 0 0 1px #000 inset; opacity: .7; }
.mvlm-image .chosen { border: 2px solid #fff; box-shadow: 0 0 0 1px #000, 0 0 0 1px #000 inset; }`;

function place(mark, index, rows, cols) {
  const shown = index >= 0 && index < rows * cols;
  mark.style.display = shown ? "block" : "none";
  if (!shown) return;
  mark.style.left = `${(index % cols) * 100 / cols}%`;
  mark.style.top = `${Math.floor(index / cols) * 100 / rows}%`;
  mark.style.width = `${100 / cols}%`;
  mark.style.height = `${100 / rows}%`;
}

function render({ model, el }) {
  const frame = document.createElement("div"), style = document.createElement("style");
  style.textContent = STYLE;
  frame.className = "mvlm-image";
  frame.tabIndex = 0;
  frame.setAttribute("role", "application");
  const img = frame.appendChild(new Image());
  const hover = frame.appendChild(document.createElement("div")), chosen = frame.appendChild(document.createElement("div"));
  hover.className = "hover";
  chosen.className = "chosen";
  el.append(style, frame);

  const size = () => [model.get("rows"), model.get("cols")];
  const choose = (index) => { model.set("chosen", index); model.save_changes(); };
  let url = null;
  function draw() {
    const old = url;
    frame.style.display = model.get("png").byteLength ? "" : "none";
    url = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    img.onload = () => old && URL.revokeObjectURL(old);
    img.src = url;
  }
  function describe() {
    frame.style.width = `${model.get("width")}px`;
    frame.title = model.get("hint");
    img.alt = model.get("hint");
    frame.setAttribute("aria-label", model.get("hint"));
    place(chosen, model.get("chosen"), ...size());
  }
  function cellAt(event) {
    const [rows, cols] = size(), box = frame.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top) / box.height * rows), col = Math.floor((event.clientX - box.left) / box.width * cols);
    return row >= 0 && row < rows && col >= 0 && col < cols ? row * cols + col : -1;
  }
  frame.onmousemove = (e) => place(hover, cellAt(e), ...size());
  frame.onmouseleave = () => place(hover, -1, ...size());
  frame.onclick = (e) => { const at = cellAt(e); choose(at === model.get("chosen") && model.get("optional") ? -1 : at); };
  frame.onkeydown = (e) => {
    const [rows, cols] = size(), at = Math.max(model.get("chosen"), 0), row = Math.floor(at / cols), col = at % cols;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (e.key === "Escape" && model.get("optional")) choose(-1);
    else if (e.key in moves) {
      const to = [row + moves[e.key][0], col + moves[e.key][1]];
      if (to[0] >= 0 && to[0] < rows && to[1] >= 0 && to[1] < cols) choose(to[0] * cols + to[1]);
    } else return;
    e.preventDefault();
    e.stopPropagation(); // arrow keys also move between notebook cells
  };
  model.on("change:png", draw);
  for (const name of ["width", "hint", "chosen", "rows", "cols"]) model.on(`change:${name}`, describe);
  draw();
  describe();
  return () => { URL.revokeObjectURL(url); model.off(null, null, null); };
}

export default { render };
