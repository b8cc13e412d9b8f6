// Drawing of the attention explorer: a photo in color, and a map whose opacity is the attention.

const HEAT = [[255, 196, 0], [255, 106, 0], [214, 10, 60], [122, 0, 110]]; // little to much attention
const NEGATIVE = [0, 92, 190], POSITIVE = [213, 60, 0];

function heatColor(x, opacity) { // x is -1..1 -> [r, g, b, alpha], 0..255
  const size = Math.abs(x);
  if (x < 0) return [...NEGATIVE, 255 * opacity * size];
  const at = Math.min(size, 0.9999) * (HEAT.length - 1), i = Math.floor(at), f = at - i;
  return [0, 1, 2].map((k) => HEAT[i][k] * (1 - f) + HEAT[i + 1][k] * f).concat(255 * opacity * size ** 1.4);
}
const signedColor = (x, opacity) => [...(x < 0 ? NEGATIVE : POSITIVE), 255 * opacity * Math.abs(x)];

// Draw the photo over the whole canvas, and the map over it in sharp cells.
function drawMap(canvas, photo, values, grid, scale, opacity) {
  const pen = canvas.getContext("2d"), { width, height } = canvas;
  pen.imageSmoothingEnabled = true;
  pen.clearRect(0, 0, width, height);
  pen.drawImage(photo, 0, 0, width, height);
  if (!values) return;
  const cells = new ImageData(grid[1], grid[0]);
  for (let p = 0; p < values.length; p++) if (Number.isFinite(values[p])) cells.data.set((scale.signed ? signedColor : heatColor)(scale.at(values[p]), opacity), 4 * p);
  const small = Object.assign(document.createElement("canvas"), { width: grid[1], height: grid[0] });
  small.getContext("2d").putImageData(cells, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, width, height);
}

function outline(canvas, patch, grid, dash) { // a black line inside a white one: visible on every photo
  if (patch < 0) return;
  const pen = canvas.getContext("2d"), w = canvas.width / grid[1], h = canvas.height / grid[0];
  const box = [(patch % grid[1]) * w + 1.5, Math.floor(patch / grid[1]) * h + 1.5, w - 3, h - 3];
  for (const [color, line] of [["#000", 5], ["#fff", 2.5]]) {
    pen.setLineDash(dash);
    Object.assign(pen, { strokeStyle: color, lineWidth: line * Math.max(1, canvas.width / 700) });
    pen.strokeRect(...box);
  }
  pen.setLineDash([]);
}

function scaleBar(box, scale, uniform, opacity) {
  const css = (x) => { const [r, g, b, a] = (scale.signed ? signedColor : heatColor)(x, opacity); return `rgb(${r} ${g} ${b} / ${(a / 255).toFixed(3)})`; };
  const stops = [...Array(13).keys()].map((i) => css(scale.signed ? i / 6 - 1 : i / 12));
  const bar = element("div", "", `background:linear-gradient(to right,${stops}),#cfcfcf`), note = element("div");
  [bar.className, note.className] = ["bar", "ticks"];
  const tick = (at, text) => note.append(element("span", text, at < 0.12 ? "left:0" : at > 0.84 ? "right:0" : `left:${at * 100}%;transform:translateX(-50%)`));
  const at = scale.at(uniform), text = `uniform ${number(uniform)}`, most = scale.cut && !scale.signed ? ` (maximum ${number(scale.most)})` : ""; // of a signed map the sign of `most` is lost
  const end = `${scale.cut ? "≥ " : ""}${scale.signed ? "+" : ""}${number(scale.high)}${7.2 * (text.length + most.length + 10) < box.clientWidth ? most : ""}`;
  const fits = (at, text) => at * box.clientWidth + 3.6 * text.length + 7.2 * end.length < box.clientWidth; // of 12 px letters, centered
  tick(1, end);
  if (scale.signed) { tick(0, `${scale.cut ? "≤ " : ""}−${number(scale.high)}`); if (fits(0.5, "0")) tick(0.5, "0"); } else if (at < 0.999) {
    if (fits(at, text)) tick(at, text); else if (at < 0.5) tick(0, text);
    bar.append(element("div", "", `position:absolute;left:${at * 100}%;top:0;width:2px;height:100%;background:#fff;box-shadow:0 0 0 1px #000`));
  }
  box.replaceChildren(bar, note);
}

// The layer x head grid: a row per layer, the mean of heads first -> [lowest, highest, stops of the legend], null without values.
function paintGrid(canvas, cells, columns, layer, column, high, ink) {
  const known = cells.flat().filter((v) => v !== undefined), low = Math.min(...known), top = Math.max(...known), wide = Math.max(120, Math.round(canvas.clientWidth || 300));
  const pen = canvas.getContext("2d"), w = (wide - 24) / columns, tall = high * cells.length + 14;
  const css = (x) => { const [r, g, b, a] = heatColor(0.05 + 0.95 * x, 1); return `rgb(${[r - 255, g - 244, b - 226].map((v, k) => Math.round([255, 244, 226][k] + v * a / 255))})`; }; // on cream in both schemes: darker is more
  Object.assign(canvas, { width: wide * 2, height: tall * 2 });
  canvas.style.height = `${tall}px`;
  pen.scale(2, 2);
  Object.assign(pen, { font: "11px system-ui, sans-serif", textBaseline: "middle", fillStyle: ink });
  for (let h = 0; h < columns; h++) pen.fillText(h ? h - 1 : w > 120 ? "mean of heads" : w > 32 ? "mean" : "⌀", 27 + h * w, 7);
  pen.translate(0, 14);
  cells.forEach((row, l) => {
    pen.fillStyle = ink;
    pen.fillText(l, 4, (l + 0.5) * high);
    for (let h = 0; h < columns; h++) {
      const box = [24 + h * w + (h ? 2 : 0), l * high + 1, w - (h ? 2 : 4), high - 2];
      pen.fillStyle = "rgba(128,128,128,.14)";
      pen.fillRect(...box);
      if (row[h] === undefined) continue;
      pen.fillStyle = css((row[h] - low) / Math.max(top - low, 1e-12));
      pen.fillRect(...box);
    }
    for (const [strokeStyle, lineWidth] of l === layer ? [["#fff", 4], ["#000", 2]] : []) { Object.assign(pen, { strokeStyle, lineWidth }); pen.strokeRect(24 + column * w + (column ? 1 : -1), l * high, w - (column ? 0 : 2), high); }
  });
  return known.length ? [low, top, [0, 0.25, 0.5, 0.75, 1].map(css)] : null;
}

function histogram(score) { // cosines of the captions of other images, and of this one
  const made = element("canvas"), pen = made.getContext("2d"), low = Math.min(score.cosine, ...score.others), high = Math.max(score.cosine, ...score.others), bins = new Array(24).fill(0), at = (v) => Math.min(23, Math.floor((v - low) / Math.max(high - low, 1e-9) * 24));
  Object.assign(made, { width: 480, height: 72, className: "histogram", title: `Histogram of cosines, ${number(low)} to ${number(high)}; this caption ${number(score.cosine)}` });
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", made.title);
  for (const v of score.others) bins[at(v)]++;
  const most = Math.max(...bins);
  bins.forEach((n, i) => { pen.fillStyle = "rgba(128,128,128,.55)"; pen.fillRect(i * 20 + 1, 72 - n / most * 64, 18, n / most * 64); });
  pen.fillStyle = "#D55E00";
  pen.fillRect(at(score.cosine) * 20 + 8, 0, 4, 72);
  return made;
}
