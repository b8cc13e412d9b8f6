// Files of the attention explorer: the shown map as PNG, SVG and CSV, and the selection as Python.

function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}

const wrapped = (text, size = 60) => (text.match(new RegExp(`.{1,${size}}(\\s|$)`, "g")) || []).map((line) => line.trim());

function csvOf(values, side) {
  const rows = [...values].map((v, p) => [Math.floor(p / side.grid[1]), p % side.grid[1], v, v / side.uniform].join());
  return ["row,column,value,times_uniform", ...rows].join("\n") + "\n";
}

// The photo, a rectangle per patch, and the sentence as text.
function svgOf(src, values, side, scale, opacity, words, ratio, width = 480) {
  const quoted = (text) => text.replace(/[<>&"]/g, (c) => `&#${c.charCodeAt(0)};`), [rows, columns] = side.grid, height = width * ratio;
  const space = Object.assign(element("div"), { innerHTML: "<svg></svg>" }).firstChild.namespaceURI, w = width / columns, h = height / rows, lines = wrapped(words), color = scale.signed ? signedColor : heatColor;
  const cells = [...values].map((v, p) => {
    const [r, g, b, a] = !Number.isFinite(v) ? [0, 0, 0, 0] : color(scale.at(v), opacity).map((x) => Math.round(x));
    return a ? `<rect x="${+(p % columns * w).toFixed(2)}" y="${+(Math.floor(p / columns) * h).toFixed(2)}" width="${+w.toFixed(2)}" height="${+h.toFixed(2)}" fill="rgb(${r},${g},${b})" fill-opacity="${(a / 255).toFixed(3)}"/>` : "";
  });
  const text = lines.map((line, i) => `<text x="2" y="${height + 18 + 17 * i}">${quoted(line)}</text>`);
  return `<svg xmlns="${space}" viewBox="0 0 ${width} ${height + 17 * lines.length + 8}" font-family="Helvetica, Arial, sans-serif" font-size="13" shape-rendering="crispEdges">`
    + `<image href="${src}" width="${width}" height="${height}" preserveAspectRatio="none"/>${cells.join("")}${text.join("")}</svg>\n`;
}

function pngOf(large, words) { // a copy of the large canvas, with the sentence below it -> Promise of a blob
  const canvas = element("canvas"), pen = canvas.getContext("2d"), size = Math.round(large.width / 36), lines = wrapped(words), step = Math.round(size * 1.5);
  Object.assign(canvas, { width: large.width, height: large.height + step * lines.length + size });
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(large, 0, 0);
  pen.fillStyle = "#111";
  pen.font = `${size}px system-ui, sans-serif`;
  const wide = Math.max(...lines.map((line) => pen.measureText(line).width)) / (large.width - 8);
  if (wide > 1) pen.font = `${size / wide}px system-ui, sans-serif`;
  lines.forEach((line, i) => pen.fillText(line, 4, large.height + step * (i + 1)));
  return new Promise((done) => canvas.toBlob(done));
}

function pythonOf(state) {
  const quoted = (v) => (typeof v === "string" ? JSON.stringify(v) : v === true ? "True" : v === false ? "False" : v === null ? "None" : v);
  return `explorer.state = dict(${NAMES.map((k) => `${k}=${quoted(state[k])}`).join(", ")})`;
}
