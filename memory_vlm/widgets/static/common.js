// Functions shared by the scripts of saved pages; both are inserted into one function.

const ALPHA = 0.66; // share of the color, as in memory_vlm.viz.plots
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const number = (v) => (v !== 0 && Math.abs(v) < 1e-4 ? v.toExponential(0) : String(+v.toPrecision(Math.abs(v) < 0.01 ? 2 : 3)));

function element(tag, text = "", style = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.style.cssText = style;
  return made;
}

function paint(canvas, image, values, grid, max, colors) {
  const pen = canvas.getContext("2d", { willReadFrequently: true }), { width, height } = canvas;
  pen.drawImage(image, 0, 0, width, height);
  if (!values) return;
  const pixels = pen.getImageData(0, 0, width, height), d = pixels.data;
  for (let y = 0, i = 0; y < height; y++) {
    const row = Math.floor(y * grid[0] / height) * grid[1];
    for (let x = 0; x < width; x++, i += 4) {
      const c = 3 * Math.round(255 * Math.min(values[row + Math.floor(x * grid[1] / width)] / max, 1));
      const gray = 30 + 0.8 * (0.299 * d[i] + 0.587 * d[i + 1] + 0.114 * d[i + 2]);
      for (let k = 0; k < 3; k++) d[i + k] = gray * (1 - ALPHA) + colors[c + k] * ALPHA;
    }
  }
  pen.putImageData(pixels, 0, 0);
}

function bars(title, values, names, top, even) {
  const box = element("div", "", "font-size:.8rem;line-height:1.35;margin-top:.5rem"), grid = element("div", "", "display:grid;grid-template-columns:auto 1fr 4.4em;gap:2px 8px;align-items:center");
  const size = (i) => Math.abs(values[i]), all = [...values.keys()], order = all.length > 8 ? all.sort((a, b) => size(b) - size(a)).slice(0, 8) : all;
  for (const i of order) {
    const track = element("div", "", "position:relative;height:10px;background:rgba(128,128,128,.2)");
    track.append(element("div", "", `width:${Math.min(size(i) / top, 1) * 100}%;height:100%;background:${values[i] < 0 ? "#D55E00" : "#0072B2"}`));
    if (even) track.append(element("div", "", `position:absolute;left:${Math.min(even / top, 1) * 100}%;top:0;width:2px;height:100%;background:currentColor`));
    grid.append(element("div", names[i], "white-space:nowrap"), track, element("div", number(values[i]), "text-align:right;font-variant-numeric:tabular-nums"));
  }
  box.append(element("div", title), grid);
  if (values.length > 8) box.append(element("div", `and ${values.length - 8} smaller ones`, "opacity:.75"));
  return box;
}
