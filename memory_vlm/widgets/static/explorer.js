// The attention explorer of a saved page: the same choices as the live one, without a kernel.
// start(id) reads the JSON that stands in the element `id`-data and builds the viewer inside the element `id`.

// Maps of one model for one image. Bytes are square roots, so that small attention keeps its digits.
function unpack(side, direction) {
  const { grid, heads, layers, tokens } = side, size = grid[0] * grid[1], packed = side[direction];
  if (!packed) return null;
  const data = (packed.bytes ??= bytes(packed.data)), count = tokens.length;
  return (layer, head, token) => { // token counts in `tokens`; head -1 is the mean
    const out = new Float32Array(size), chosen = head < 0 ? [...Array(heads).keys()] : [head];
    for (const h of chosen) {
      const from = ((layer * heads + h) * count + token) * size;
      for (let p = 0; p < size; p++) out[p] += packed.max[layer] * (data[from + p] / 255) ** 2 / chosen.length;
    }
    return layer < layers ? out : null;
  };
}

function start(id) {
  const root = document.getElementById(id), data = JSON.parse(document.getElementById(`${id}-data`).textContent);
  const colors = bytes(data.colors), state = { image: 0, layer: data.layer, head: data.head, token: data.token, direction: data.direction, scale: "layer", patch: -1, gray: 0 };
  const main = () => data.images[state.image].sides[0];

  const controls = root.appendChild(element("div", "", "display:flex;flex-wrap:wrap;gap:.5rem 1.2rem;align-items:center;margin:1rem 0"));
  const about = root.appendChild(element("div", "", "display:flex;gap:.8rem;align-items:center;margin:.5rem 0"));
  const original = about.appendChild(new Image()), words = about.appendChild(element("div", "", "font-size:.9rem;white-space:pre-line"));
  original.style.cssText = "width:72px;height:auto;flex:none";
  const stage = root.appendChild(element("div", "", "display:flex;flex-wrap:wrap;gap:1rem 2rem;align-items:flex-start"));
  const loaded = data.images.map((p) => { const image = new Image(); image.src = p.src; return image; });
  const views = data.images[0].sides.map((side) => makeView(side));

  function choice(name, options) { // options: [label, value]
    if (options.length < 2) return;
    const label = element("label", `${name} `), select = label.appendChild(document.createElement("select"));
    for (const [text, value] of options) select.append(Object.assign(document.createElement("option"), { textContent: text, value: String(value) }));
    select.value = String(state[name]);
    select.dataset.name = name;
    select.onchange = () => { state[name] = options.find((o) => String(o[1]) === select.value)[1]; draw(); };
    controls.append(label);
  }
  const numbered = (what, count) => [...Array(count).keys()].map((i) => [`${what} ${i}`, i]);
  const first = main(), names = first.tokens.map((t) => (t < 0 ? "CLS" : `token ${t}`));
  choice("image", data.images.map((p, i) => [`${p.index}${p.captions[0] ? `: ${p.captions[0]}` : ""}`.slice(0, 60), i]));
  choice("layer", numbered("layer", first.layers));
  choice("head", [["mean of heads", -1], ...(first.heads > 1 ? numbered("head", first.heads) : [])]);
  choice("token", names.map((n, i) => [n, i]));
  choice("direction", [["what it reads", "reads"], ["who reads it", "read_by"]].filter(([, d]) => first[d]));
  choice("scale", [["all tokens alike", "layer"], ["this token alone", "map"]]);

  function clickable(canvas, grid, get, set, hint) {
    const frame = element("div", "", "position:relative;line-height:0;cursor:crosshair;max-width:100%;width:fit-content");
    const mark = element("div", "", "position:absolute;display:none;box-sizing:border-box;border:2px solid #fff;box-shadow:0 0 0 1px #000,0 0 0 1px #000 inset;pointer-events:none");
    canvas.style.cssText = "max-width:100%;height:auto;border-radius:3px";
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", hint);
    canvas.title = hint;
    frame.append(canvas, mark);
    canvas.onclick = (e) => {
      const box = canvas.getBoundingClientRect(), row = Math.floor((e.clientY - box.top) / box.height * grid[0]), col = Math.floor((e.clientX - box.left) / box.width * grid[1]);
      set(row * grid[1] + col);
    };
    canvas.onkeydown = (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid[1], ArrowDown: grid[1] }[e.key], to = Math.max(get(), 0) + step;
      if (!(to >= 0 && to < grid[0] * grid[1])) return;
      e.preventDefault();
      set(to);
    };
    frame.show = () => {
      const at = get();
      mark.style.display = at < 0 ? "none" : "block";
      Object.assign(mark.style, { left: `${at % grid[1] * 100 / grid[1]}%`, top: `${Math.floor(at / grid[1]) * 100 / grid[0]}%`, width: `${100 / grid[1]}%`, height: `${100 / grid[0]}%` });
    };
    return frame;
  }

  function moved(patch, from, to) { // the patch at the same place of another grid
    if (patch < 0) return patch;
    const row = Math.floor(patch / from[1]), col = patch % from[1];
    return Math.floor((row + 0.5) * to[0] / from[0]) * to[1] + Math.floor((col + 0.5) * to[1] / from[1]);
  }

  function makeView(side) {
    const column = stage.appendChild(element("section", "", "width:320px;max-width:100%")), second = data.images[0].sides.length > 1 ? column : stage.appendChild(element("section", "", "width:320px;max-width:100%"));
    const large = Object.assign(document.createElement("canvas"), { width: 320, height: Math.round(320 * data.images[0].height / data.images[0].width) });
    const count = side.tokens.length, cols = side.cols, rows = Math.ceil(count / cols), cell = Math.floor(320 / cols), high = Math.round(cell * data.images[0].height / data.images[0].width);
    const small = Object.assign(document.createElement("canvas"), { width: cell * cols, height: high * rows });
    const patch = clickable(large, side.grid, () => moved(state.patch, main().grid, side.grid),
                            (p) => { const to = moved(p, side.grid, main().grid); state.patch = to === state.patch ? -1 : to; draw(); }, "Click a patch");
    const tokens = clickable(small, [rows, cols], () => (state.token < count ? state.token : -1), (t) => { if (t < count) { state.token = t; draw(); } }, "All tokens; click one");
    const view = { large, small, cols, cell, high, patch, tokens, scale: element("div", "", "position:relative;height:32px;font-size:.7rem;line-height:16px;margin-top:4px"), info: element("p", "", "font-size:.85rem;margin:.2rem 0"), bars: element("div"), adds: element("div") };
    if (data.images[0].sides.length > 1) column.append(element("b", side.name));
    column.append(patch, view.scale, view.info, view.bars);
    second.append(tokens, view.adds);
    return view;
  }

  function draw() {
    for (const select of controls.querySelectorAll("select")) select.value = String(state[select.dataset.name]);
    const shown = data.images[state.image], image = loaded[state.image];
    if (!image.complete) return void (image.onload = draw);
    state.gray = shown.gray;
    words.textContent = shown.words;
    original.src = shown.src;
    original.alt = shown.captions[0] || `image ${shown.index}`;
    const maps = shown.sides.map((side) => {
      const map = side[state.direction] && unpack(side, state.direction);
      return map ? side.tokens.map((t, i) => (state.layer < side.layers && !(t < 0 && state.direction === "read_by") ? map(state.layer, Math.min(state.head, side.heads - 1), i) : null)) : [];
    });
    const scaled = maps.flatMap((m) => (state.scale === "map" ? [m[state.token]] : m)).filter(Boolean);
    const max = Math.max(state.scale === "map" ? 1e-12 : 3 * main().even, ...scaled.map((m) => m.reduce((a, b) => Math.max(a, b), 0)));
    shown.sides.forEach((side, s) => drawSide(side, views[s], maps[s], max, image));
  }

  function drawSide(side, view, maps, max, image) {
    const values = maps[state.token], name = side.tokens[state.token] < 0 ? "CLS" : `token ${side.tokens[state.token]}`;
    paint(view.large, image, values, side.grid, max, colors);
    view.patch.show();
    view.scale.replaceChildren();
    if (values) {
      const stops = [...Array(12).keys()].map((i) => { const c = 3 * Math.round(i * 255 / 11); return `rgb(${[0, 1, 2].map((k) => colors[c + k] * ALPHA + state.gray * (1 - ALPHA))})`; });
      view.scale.append(element("div", "", `height:12px;border-radius:2px;background:linear-gradient(to right,${stops})`), element("div", number(max), "position:absolute;right:0;top:13px"));
      const at = side.even / max;
      if (at < 1) view.scale.append(element("div", "", `position:absolute;left:${at * 100}%;top:0;height:12px;width:2px;background:#fff;box-shadow:0 0 0 1px #000`),
                                    element("div", `even ${number(side.even)}`, `position:absolute;top:13px;${at < 0.5 ? `left:${at * 100}%` : `right:${Math.max(1 - at, 0.16) * 100}%`}`));
      const best = values.indexOf(values.reduce((a, b) => Math.max(a, b))), sum = values.reduce((a, b) => a + b);
      const share = state.direction === "reads" ? `${(sum * 100).toFixed(0)}% of its attention is on patches` : `patches give it ${(sum / values.length * 100).toFixed(1)}% of their attention on average`;
      view.info.textContent = `${name}: ${share}, most at row ${Math.floor(best / side.grid[1])}, column ${best % side.grid[1]}: ${number(values[best])}, ${(values[best] / side.even).toFixed(1)} times even.`;
    } else view.info.textContent = `${side.name} has no such map: ${name === "CLS" ? "who reads CLS is not recorded" : "its layers or tokens end before"}.`;
    drawTokens(side, view, maps, max, image);
    drawPatch(side, view);
    const added = side.adds && Math.max(1e-12, ...side.adds.map(Math.abs));
    view.adds.replaceChildren();
    if (added) view.adds.append(bars("What each memory token adds to the cosine with the first caption, directly", side.adds, side.adds.map((_, m) => `token ${m}`), added));
  }

  function drawTokens(side, view, maps, max, image) {
    const pen = view.small.getContext("2d"), tile = Object.assign(document.createElement("canvas"), { width: view.cell - 2, height: view.high - 2 });
    pen.clearRect(0, 0, view.small.width, view.small.height);
    side.tokens.forEach((token, i) => {
      const x = i % view.cols * view.cell + 1, y = Math.floor(i / view.cols) * view.high + 1;
      pen.globalAlpha = maps[i] ? 1 : 0.3;
      paint(tile, image, maps[i], side.grid, max, colors);
      pen.drawImage(tile, x, y);
      pen.globalAlpha = 1;
      pen.font = "11px system-ui, sans-serif";
      pen.lineWidth = 3;
      pen.strokeText(token < 0 ? "CLS" : token, x + 3, y + 12);
      pen.fillStyle = "#fff";
      pen.fillText(token < 0 ? "CLS" : token, x + 3, y + 12);
    });
    view.tokens.show();
  }

  function drawPatch(side, view) {
    const patch = moved(state.patch, main().grid, side.grid);
    view.bars.replaceChildren();
    if (patch < 0) return void view.bars.append(element("p", "Click a patch to see which memory reads it, and which memory it reads.", "font-size:.85rem"));
    if (state.layer >= side.layers) return;
    const memory = [...side.tokens.keys()].filter((i) => side.tokens[i] >= 0), labels = memory.map((i) => `token ${side.tokens[i]}`);
    const here = `patch at row ${Math.floor(patch / side.grid[1])}, column ${patch % side.grid[1]}`, head = Math.min(state.head, side.heads - 1);
    const lists = ["reads", "read_by"].map((d) => { const map = unpack(side, d); return map && memory.map((i) => map(state.layer, head, i)[patch]); });
    const top = Math.max(2 * side.even, ...lists.flatMap((l) => l || []));
    if (lists[0]) view.bars.append(bars(`Memory that reads the ${here}`, lists[0], labels, top, side.even));
    view.bars.append(bars(`Memory that the ${here} reads`, lists[1], labels, top, side.even));
  }
  draw();
}
