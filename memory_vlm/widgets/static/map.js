// The embedding map: images and captions in two dimensions, a lasso, and a list of the hardest pairs.
//   host.data {points: [{x, y, id, caption: whether it is a caption}], columns: {name: values by id}, captions: by id,
//   wrong: by id, twin: name or "", how: projection, ways: those to choose from, note};
//   host.project(how) (with a kernel), host.open(id) (if there is an explorer), host.select(ids), host.thumbs(ids): answered by thumbs({id: src})

const RAMP = [[43, 123, 186], [150, 150, 156], [217, 95, 2]]; // low, middle, high; on light and dark pages
const ramp = (x) => { const at = Math.min(Math.max(x, 0), 0.9999) * 2, i = Math.floor(at); return `rgb(${[0, 1, 2].map((k) => Math.round(RAMP[i][k] + (RAMP[i + 1][k] - RAMP[i][k]) * (at - i)))})`; };
const LISTED = 8;
const short = (text) => (text.length > 110 ? `${[...text].slice(0, 110).join("")}…` : text);

function inside(x, y, polygon) { // even-odd rule
  let within = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i], [bx, by] = polygon[j];
    if ((ay > y) !== (by > y) && x < (bx - ax) * (y - ay) / (by - ay) + ax) within = !within;
  }
  return within;
}

// Values as 0..1 between their 2nd and 98th percentile; ranks on a logarithmic scale.
function spread(values, log) {
  const scaled = values.map((v) => (log ? Math.log(v) : v)), sorted = [...scaled].sort((a, b) => a - b), at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  return scaled.map((v) => (v - at(0.02)) / Math.max(at(0.98) - at(0.02), 1e-9));
}

const pairWords = (data, id) => {
  const rank = data.columns.rank?.[id], twin = data.columns.twin_rank?.[id];
  return `image ${id}: “${short(data.captions[id])}”${rank ? `, rank ${rank} of ${data.captions.length}` : ""}${twin ? `, ${data.twin} rank ${twin}` : ""}`;
};

function makeMap(root, host) {
  const { data } = host, count = data.captions.length, names = Object.keys(data.columns), H = 400, pad = 14;
  const make = (parent, tag, text = "", name = "") => { const made = parent.appendChild(element(tag, text)); made.className = name; return made; };
  const base = element("canvas"), radius = count > 1000 ? 2.5 : 4.5; // all points, painted once
  let chosen = [], now = -1, lasso = null, places = [];
  root.className = "mvlm-x mvlm-map";
  root.dataset.lmSuppressShortcuts = "true";
  const bar = make(root, "div", "", "controls"), label = make(bar, "label", "color ", "choice"), select = make(label, "select"), shown = make(bar, "label", "", "choice"), box = make(shown, "input"), scale = make(bar, "span", "", "note");
  for (const name of names) make(select, "option", name.replace("_", " "));
  select.setAttribute("aria-label", "color");
  if (host.project && data.ways?.length > 1) {
    const how = make(make(bar, "label", "projection ", "choice"), "select");
    for (const name of data.ways) make(how, "option", name.toUpperCase());
    Object.assign(how, { selectedIndex: data.ways.indexOf(data.how), onchange: () => host.project(data.ways[how.selectedIndex]) });
  }
  Object.assign(box, { type: "checkbox", checked: false, onchange: () => { fit(); paint(); } });
  Object.assign(shown, { hidden: data.points.every((p) => !p.caption) }).append(" captions"); // hidden without a text tower
  const canvas = make(root, "canvas", "", "plot"), tip = make(root, "div", `${host.open ? "Click a point to open it" : "Point at an image to read its caption"}; draw around points to select them.`, "value");
  make(root, "p", data.note, "note");
  const title = make(root, "h4"), list = make(root, "div", "", "pairs");
  tip.setAttribute("role", "status");
  Object.assign(canvas, { tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.style.cssText = `width:100%;height:${H}px;display:block;cursor:crosshair;border:1px solid var(--line);border-radius:4px;touch-action:pan-y`;
  let x0, x1, y0, y1; // of the points that are shown
  const fit = () => { const span = (key) => { const v = (box.checked ? data.points : images).map((p) => p[key]); return v.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]); }; [x0, x1] = span("x"); [y0, y1] = span("y"); };
  const part = (v, low, high) => (high > low ? (v - low) / (high - low) : 0.5);
  const images = data.points.filter((p) => !p.caption), imageOf = new Map(images.map((p) => [p.id, p]));
  fit();

  function paint() {
    const wide = canvas.clientWidth || 600, pen = base.getContext("2d"), name = names[select.selectedIndex] ?? "", picked = new Set(chosen);
    const scaled = data.columns[name] ? spread(data.columns[name], name.endsWith("rank")) : new Array(count).fill(0);
    const place = (p) => [pad + part(p.x, x0, x1) * (wide - 2 * pad), pad + (1 - part(p.y, y0, y1)) * (H - 2 * pad)];
    places = images.map((p) => [p.id, ...place(p)]);
    for (const it of [base, canvas]) Object.assign(it, { width: 2 * wide, height: 2 * H });
    pen.setTransform(2, 0, 0, 2, 0, 0);
    for (const p of data.points) {
      if (p.caption && !box.checked) continue;
      const [x, y] = place(p), r = 2 * radius / 3;
      pen.globalAlpha = picked.size && !picked.has(p.id) ? 0.2 : 0.9;
      pen.fillStyle = pen.strokeStyle = ramp(scaled[p.id]);
      pen.lineWidth = r / 2;
      pen.beginPath();
      if (p.caption) { pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r); pen.moveTo(x - r, y + r); pen.lineTo(x + r, y - r); pen.stroke(); } else { pen.arc(x, y, radius, 0, 7); pen.fill(); }
    }
    const [low, high] = (data.columns[name] ?? []).reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    scale.replaceChildren();
    if (data.columns[name]) { make(scale, "span", `${number(low)} `); make(scale, "span", "", "ramp").style.cssText = `display:inline-block;width:90px;height:10px;margin:0 4px;background:linear-gradient(to right,${[0, 0.5, 1].map(ramp)})`; make(scale, "span", number(high)); }
    draw();
  }
  function draw() { // over the points: the one under the mouse, and the lasso
    const pen = canvas.getContext("2d"), at = places.find(([id]) => id === now);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (base.width) pen.drawImage(base, 0, 0);
    pen.setTransform(2, 0, 0, 2, 0, 0);
    Object.assign(pen, { strokeStyle: getComputedStyle(root).color, lineWidth: 2 });
    if (at) { pen.beginPath(); pen.arc(at[1], at[2], radius + 3, 0, 7); pen.stroke(); }
    if (lasso) { pen.lineWidth = 1.5; pen.setLineDash([5, 4]); pen.beginPath(); lasso.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y))); pen.stroke(); pen.setLineDash([]); }
    canvas.setAttribute("aria-label", `Embedding map of ${count} images, colored by ${names[select.selectedIndex]}. Left and right arrows move between images${host.open ? ", Enter opens one" : ""}.${now < 0 ? "" : ` ${pairWords(data, now)}`}`);
  }
  function point(id) { now = id; tip.textContent = id < 0 ? "" : pairWords(data, id); draw(); }
  const openImage = host.open ?? point; // a saved page has no explorer
  function nearest(x, y) {
    let best = -1, least = 144;
    for (const [id, a, b] of places) { const d = (a - x) ** 2 + (b - y) ** 2; if (d < least) [best, least] = [id, d]; }
    return best;
  }
  const at = (e) => { const r = canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
  canvas.onpointerdown = (e) => { lasso = [at(e)]; canvas.setPointerCapture?.(e.pointerId); };
  canvas.onpointermove = (e) => {
    const [x, y] = at(e);
    if (lasso) { lasso.push([x, y]); draw(); } else { const id = nearest(x, y); if (id !== now) point(id); }
  };
  canvas.onpointercancel = () => { lasso = null; draw(); }; // a finger scrolls the page
  canvas.onpointerup = (e) => {
    const line = lasso, [x, y] = at(e);
    lasso = null;
    if (!line) return;
    if (line.length < 4 || Math.max(...line.map(([a, b]) => Math.abs(a - line[0][0]) + Math.abs(b - line[0][1]))) < 6) {
      const id = nearest(x, y);
      if (id >= 0) openImage(id); else choose([]);
      return draw();
    }
    choose(places.filter(([, a, b]) => inside(a, b, line)).map(([id]) => id));
  };
  root.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || (e.shiftKey && e.key === "Enter")) return;
    e.stopPropagation();
    if (e.target !== canvas) return;
    const ids = chosen.length ? chosen : images.map((p) => p.id), i = ids.indexOf(now), step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[e.key];
    if (step) point(ids[(i + step + ids.length) % ids.length]);
    else if (e.key === "Enter" && imageOf.has(now)) openImage(now);
    else if (e.key === "Escape") choose([]);
    else return;
    e.preventDefault();
  });
  function choose(ids, tell = true) {
    chosen = ids;
    if (tell) host.select(ids);
    tip.textContent = ids.length ? `${ids.length} of ${count} images selected; Esc clears.` : "";
    pairs();
    paint();
  }
  function pairs() { // the hardest of the selected images; each with the caption that comes before its own
    const ids = (chosen.length ? [...chosen] : [...Array(count).keys()]), rank = data.columns.rank, cosine = data.columns.cosine;
    list.replaceChildren();
    title.textContent = rank ? `Hardest pairs${chosen.length ? " of the selection" : ""}: own caption, and the best wrong one with its image` : "";
    if (!rank) return;
    ids.sort((a, b) => rank[b] - rank[a] || cosine[a] - cosine[b]);
    const few = ids.slice(0, LISTED), wanted = new Set();
    for (const id of few) {
      const row = make(list, "div", "", "pair"), alone = data.captions[data.wrong[id]] === data.captions[id]; // there is no other caption
      for (const [i, own] of alone ? [[id, true]] : [[id, true], [data.wrong[id], false]]) {
        const open = make(row, "button"), image = open.appendChild(new Image()), words = make(open, "span");
        Object.assign(open, { type: "button", title: `${host.open ? "Open image" : "Show on the map: image"} ${i}`, onclick: () => openImage(i) });
        Object.assign(image, { alt: "", width: 52, height: 52 });
        image.dataset.id = i;
        const twin = data.columns.twin_rank?.[id];
        words.textContent = own ? `“${short(data.captions[i])}”: rank ${rank[id]}${twin ? `; ${data.twin}: ${twin}` : ""}` : `${rank[id] > 1 ? "first" : "second"}: “${short(data.captions[i])}”`;
        wanted.add(i);
      }
    }
    host.thumbs([...wanted]);
  }
  const watch = new ResizeObserver(paint);
  watch.observe(root);
  select.onchange = paint;
  if (names.includes(host.color)) select.selectedIndex = names.indexOf(host.color);
  paint();
  pairs();
  return {
    thumbs: (sources) => { for (const image of list.querySelectorAll("img")) if (sources[image.dataset.id]) image.src = sources[image.dataset.id]; },
    choose: (ids) => choose(ids, false), stop: () => watch.disconnect(),
  };
}

function start(id) { // of a saved page
  const data = JSON.parse(document.getElementById(`${id}-data`).textContent);
  const map = makeMap(document.getElementById(id), { data, color: data.color, select() {}, thumbs: (ids) => queueMicrotask(() => map.thumbs(data.thumbs)) });
}
