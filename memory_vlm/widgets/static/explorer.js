// The attention explorer, for the live widget and for saved pages. A host gives images and keeps the state:
//   host.count, host.models [{name, layers, heads, tokens}], host.state {image, layer, head, token, ...}
//   host.want(i): asks for image i, which comes by show(data); host.thumbs(ids): by thumbs(ids, items)
//   host.set(changes): the state changed here. Only with a kernel: host.save() a page, host.score captions,
//   host.order(by): by ordered(by, ids); host.add(file): an image of one's own; host.effect(): ablates the chosen token; host.stop() ends such work

const SHOWS = { reads: "what the token reads", read_by: "who reads the token", minus_mean: "minus mean of tokens", minus_pin: "minus pinned token", caption: "patches and caption" };
const SCALES = { robust: "robust, without outliers", max: "to the maximum", sqrt: "square root", log: "logarithm" };
const SORTS = { index: "index", use: "use", difference: "difference" };
const KEYS = [["j, k", "next, previous image"], ["[, ]", "previous, next layer"], ["h, H", "next, previous head"], ["t, T", "next, previous token"], ["p, shift-click", "pin a token, to subtract its map from the others"], ["m", "next view: reads, is read, minus mean, minus pinned, caption"], ["arrows", "move the selected patch or cell"], ["Esc", "clear the patch"], ["?", "this help"]];
const GALLERIES = { index: "index", hardest: "hardest", easiest: "easiest", telling: "most telling" };
const WAITING = "Waiting for the first maps …";
const GALLERY = 12, NAMES = ["image", "layer", "head", "token", "pin", "direction", "show", "scale", "same_scale", "opacity", "patch", "caption", "sort", "gallery"];

function makeExplorer(root, host) {
  const S = { ...host.state }, views = [], tiles = [];
  let shown = null, photo = null, from = 0, order = null, waiting = "", preview = null, answered = {}, painting = 0, word = 0; // word: 0 the whole caption, then its words
  const make = (parent, tag, name = "", text = "") => { const made = parent.appendChild(element(tag, text)); if (name) made.className = name; return made; };
  const button = (parent, text, title, click) => { const made = make(parent, "button", "", text); Object.assign(made, { title, onclick: click, type: "button" }); made.setAttribute("aria-label", title); return made; };

  root.classList.add("mvlm-x", ...(host.models.length > 1 ? ["two"] : []));
  root.tabIndex = -1;
  if (host.width) root.style.setProperty("--wide", `${host.width}px`);
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab's own keys would cut and convert cells
  const head = make(root, "header"), about = make(head, "strong", "about"), tools = make(head, "div", "tools");
  const gallery = make(root, "nav", "gallery"), controls = make(root, "div", "controls");
  const message = make(root, "div", "message"), help = make(root, "dl", "help");
  const bar = make(root, "progress"), stop = button(root, "Stop", "Stop the work in the background", () => { if (waiting) set({ gallery: "index" }); host.stop(); }), stage = make(root, "div", "stage"), panels = make(root, "div", "panels"), below = make(root, "div", "below"), note = make(root, "p", "note");
  gallery.setAttribute("aria-label", "images");
  message.setAttribute("role", "status");
  bar.setAttribute("aria-label", "maps received");
  bar.hidden = stop.hidden = help.hidden = true;
  for (const [key, what] of KEYS) help.append(element("dt", key), element("dd", what));

  // Controls ------------------------------------------------------------------------------------------------------
  const selects = {};
  function choice(name, label, options, parent = controls) { // options: [value, text]
    const box = make(parent, "label", `choice ${name}`, `${label} `), select = make(box, "select");
    select.setAttribute("aria-label", label);
    select.onchange = () => set({ [name]: options()[select.selectedIndex][0] });
    selects[name] = () => {
      const all = options(), words = all.map((o) => o[1]).join("\n");
      if (select.words !== words) { select.replaceChildren(...all.map(([, text]) => element("option", text))); select.words = words; }
      select.selectedIndex = all.findIndex(([value]) => value === S[name]);
    };
    return box;
  }
  const main = () => shown?.sides[0];
  const numbered = (count) => [...Array(count).keys()].map((i) => [i, String(i)]);
  choice("layer", "layer", () => numbered(host.models[0].layers));
  choice("head", "head", () => [["mean", "mean"], ...numbered(host.models[0].heads)]);
  choice("token", "token", () => (main()?.tokens ?? []).map((t) => [t < 0 ? "cls" : t, t < 0 ? "CLS" : main().kind === "memory" ? String(t) : `patch ${t}`]));
  choice("show", "show", () => Object.entries(SHOWS).filter(([k]) => possible(k)));
  choice("scale", "scale", () => Object.entries(SCALES));
  choice("same_scale", "range", () => [[true, "all tokens"], [false, "this token"]]);
  const opacity = make(make(controls, "label", "choice", "opacity "), "input");
  Object.assign(opacity, { type: "range", min: 0, max: 1, step: 0.05, oninput: () => set({ opacity: +opacity.value }) });
  function possible(show) {
    if (!main()) return show === S.show;
    if (show === "caption") return shown.sides.some((s) => s.by_patch) || (!!host.score && S.show === show); // it comes after the maps
    if (show === "minus_mean") return main().tokens.length > 2;
    if (show === "minus_pin") return S.pin !== null;
    return shown.sides.some((s) => s.has.includes(show));
  }
  button(tools, "PNG", "Save the image and its map as PNG", () => save("png"));
  button(tools, "SVG", "Save the image and its map as SVG", () => save("svg"));
  button(tools, "CSV", "Save the values of the map as CSV", () => save("csv"));
  if (host.save) button(tools, "HTML", "Save this explorer as a page", () => host.save());
  button(tools, "Python", "Copy the selection as Python", () => copy());
  button(tools, "?", "Show the keys", () => { help.hidden = !help.hidden; });

  const number_ = make(make(gallery, "label", "index", "image "), "input"), count = make(gallery, "span", "count", `of ${host.count}`);
  Object.assign(number_, { type: "number", min: 0, max: host.count - 1, onchange: () => goto(number_.value) });
  if (host.order) choice("gallery", "sort", () => Object.entries(GALLERIES), gallery);
  if (host.add) {
    const file = Object.assign(element("input"), { type: "file", accept: "image/*", hidden: true, onchange: () => { if (file.files[0]) host.add(file.files[0]); file.value = ""; } });
    root.append(file);
    button(gallery, "+ image", "Add an image of your own: choose a file, or drop it on the explorer", () => file.click());
    root.addEventListener("dragover", (e) => { e.preventDefault(); root.classList.add("drop"); });
    root.addEventListener("dragleave", () => root.classList.remove("drop"));
    root.addEventListener("drop", (e) => { e.preventDefault(); e.stopPropagation(); root.classList.remove("drop"); if (e.dataTransfer.files[0]) host.add(e.dataTransfer.files[0]); });
  }
  const pages = make(gallery, "div", "pages");
  button(pages, "‹", "Previous images", () => page(-GALLERY));
  const strip = make(pages, "div", "thumbs");
  button(pages, "›", "Next images", () => page(GALLERY));
  function goto(value) {
    const i = Number(value);
    if (value === "" || !Number.isInteger(i) || i < 0 || i >= host.count) { say(`There is no image ${value}; choose 0 to ${host.count - 1}.`, true); number_.value = S.image; return; }
    set({ image: i });
  }
  const all = () => (S.gallery !== "index" && order) || [...Array(host.count).keys()];
  function page(step) {
    from = Math.max(0, Math.min(from + step, Math.floor((all().length - 1) / GALLERY) * GALLERY));
    host.thumbs(all().slice(from, from + GALLERY));
  }
  function thumbs(ids, items) {
    if (String(ids) !== String(all().slice(from, from + GALLERY))) return;
    strip.replaceChildren(...items.map(({ index, src, caption }) => {
      const made = element("button"), image = made.appendChild(new Image());
      Object.assign(made, { type: "button", title: `${index}: ${caption}`, onclick: () => set({ image: index }) });
      Object.assign(image, { src, alt: `image ${index}: ${caption}` });
      made.dataset.index = index;
      return made;
    }));
    mark();
  }
  function mark() {
    for (const thumb of strip.children) thumb.setAttribute("aria-current", String(+thumb.dataset.index === S.image));
    number_.value = S.image;
    number_.max = host.count - 1;
    count.textContent = `of ${host.count}`;
  }
  function sortGallery() { // the order comes later; until then the old one stays
    if (S.gallery === "index" || !host.order) { waiting = ""; from = Math.floor(S.image / GALLERY) * GALLERY; return page(0); }
    if (waiting === S.gallery) return;
    waiting = S.gallery;
    say("Comparing the images …");
    host.order(S.gallery);
  }
  function ordered(by, ids) {
    if (by !== S.gallery) return;
    order = ids;
    from = 0;
    waiting = "";
    say("");
    page(0);
    if (!ids.includes(S.image)) set({ image: ids[0] });
  }
  function say(text, problem = false) { message.textContent = text; message.classList.toggle("problem", problem); }

  // One model -----------------------------------------------------------------------------------------------------
  function makeView(side, s, difference = false) {
    const figure = make(stage, "section", "figure"), frame = make(figure, "div", "frame"), canvas = make(frame, "canvas");
    if (difference || host.models.length > 1) figure.prepend(element("h4", difference ? `${host.models[0].name} − ${host.models[1].name}` : side.name));
    const mark = make(frame, "div", "hover"), scale = make(figure, "div", "scale"), hover = make(figure, "div", "value"), info = make(figure, "p");
    if (host.effect && s === 0 && !difference && side.kind === "memory") {
      const link = button(figure, "Does it matter? Ablate this token", "Mask this token, and measure the cosine of this caption and R@1", () => { say("Masking the token …"); host.effect(); });
      link.className = "link";
    }
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    const at = (e) => {
      const box = canvas.getBoundingClientRect(), [rows, columns] = side.grid;
      const row = Math.floor((e.clientY - box.top) / box.height * rows), column = Math.floor((e.clientX - box.left) / box.width * columns);
      return row >= 0 && row < rows && column >= 0 && column < columns ? row * columns + column : -1;
    };
    const view = { side, s, difference, figure, canvas, scale, info, hover, values: null };
    canvas.onmousemove = (e) => pointAt(view, mark, at(e));
    canvas.onmouseleave = () => pointAt(view, mark, -1);
    canvas.onclick = (e) => { const p = movedPatch(at(e), side.grid, main().grid); set({ patch: p === S.patch ? -1 : p }); };
    canvas.onkeydown = (e) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key], [rows, columns] = main().grid, p = Math.max(S.patch, 0);
      if (!step) return;
      e.preventDefault();
      const row = Math.floor(p / columns) + step[0], column = p % columns + step[1];
      if (row >= 0 && row < rows && column >= 0 && column < columns) set({ patch: row * columns + column });
    };
    if (difference) return view;
    const panel = make(stage, "section", "panel");
    make(panel, "h4", "", `Layers and heads${host.models.length > 1 ? ` of ${side.name}` : ""}: `);
    const quantity = make(panel.lastChild, "select"), grid = make(panel, "canvas", "lh"), gridNote = make(panel, "div", "value");
    for (const name of Object.keys(QUANTITIES)) quantity.append(element("option", name));
    quantity.setAttribute("aria-label", "quantity of the grid");
    quantity.onchange = () => drawGrid(view);
    const title = make(panel, "h4", "sorted", "Tokens: "), list = make(panel, "div", "tokens");
    if (s === 0) choice("sort", "sort", () => Object.entries(SORTS), title);
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "tokens");
    grid.tabIndex = 0;
    grid.setAttribute("role", "application");
    grid.setAttribute("aria-label", "Layers (rows) and heads (columns; the first is their mean); arrows choose");
    const cell = (e) => { const box = grid.getBoundingClientRect(); return [Math.floor((e.clientY - box.top - 14) / (box.height - 14) * side.layers), Math.floor((e.clientX - box.left - 24) / (box.width - 24) * view.columns) - 1]; };
    grid.onclick = (e) => { const [l, h] = cell(e); if (h >= -1 && l >= 0 && l < host.models[0].layers && h < host.models[0].heads) set({ layer: l, head: h < 0 ? "mean" : h }); };
    grid.onmousemove = (e) => { const [l, h] = cell(e), v = view.cells?.[l]?.[h + 1]; if (v === undefined) showLegend(view); else gridNote.textContent = `layer ${l}, ${h < 0 ? "mean of heads" : `head ${h}`}: ${number(v)}`; };
    grid.onmouseleave = () => showLegend(view);
    grid.onkeydown = (e) => {
      const now = S.head === "mean" ? -1 : S.head, l = S.layer + ({ ArrowUp: -1, ArrowDown: 1 }[e.key] ?? 0), h = now + ({ ArrowLeft: -1, ArrowRight: 1 }[e.key] ?? 0);
      if (!e.key.startsWith("Arrow")) return;
      e.preventDefault();
      if (l >= 0 && l < side.layers && h >= -1 && h < side.heads) set({ layer: l, head: h < 0 ? "mean" : h });
    };
    return Object.assign(view, { panel, quantity, grid, gridNote, list, tiles: [], legend: [] });
  }

  function pointAt(view, box, p) { // no message to the kernel, no redrawing
    const [rows, columns] = view.side.grid;
    box.style.display = p < 0 ? "none" : "block";
    view.hover.textContent = "";
    if (p < 0) return;
    Object.assign(box.style, { left: `${p % columns * 100 / columns}%`, top: `${Math.floor(p / columns) * 100 / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
    if (view.values) view.hover.textContent = `${placeName(p, view.side)}: ${number(view.values[p])}${view.signed || view.difference || !Number.isFinite(view.values[p]) ? "" : `, ${times(view.values[p], view.side)}`}`;
  }

  function makeTiles(view) {
    const key = view.side.tokens.join() + view.side.kind;
    if (view.key === key) return;
    view.key = key;
    view.tiles = view.side.tokens.map((token, t) => {
      const tile = element("button"), canvas = tile.appendChild(element("canvas")), name = tile.appendChild(element("span", token < 0 ? "CLS" : token)), use = tile.appendChild(element("i"));
      Object.assign(tile, { type: "button", onclick: (e) => (e.shiftKey ? pin(token < 0 ? "cls" : token) : set({ token: token < 0 ? "cls" : token })), onmouseenter: () => look(t), onmouseleave: () => look(null) });
      tile.setAttribute("role", "option");
      return { tile, canvas, name, use };
    });
  }
  function pin(token) { // a second click or key unpins
    const same = S.pin === token;
    preview = null; // the mouse is over the pinned token, whose difference to itself says nothing
    set(same ? { pin: null, ...(S.show === "minus_pin" && { show: S.direction }) } : { pin: token, show: "minus_pin" });
  }
  function look(t) { preview = t; for (const view of views) drawLarge(view); } // the map of a token under the mouse

  // Drawing -------------------------------------------------------------------------------------------------------
  const way = () => (S.show === "read_by" ? "read_by" : S.show === "reads" ? "reads" : S.direction);
  function tokenOf(side, token) { // position of a token; another model may lack it
    const wanted = token === "cls" ? -1 : token, at = main().kind === side.kind ? side.tokens.indexOf(wanted) : wanted < 0 ? 0 : -1;
    return at;
  }
  function compute(view) {
    const side = view.side, way_ = side.has.includes(way()) ? way() : null;
    view.signed = ["minus_mean", "minus_pin", "caption"].includes(S.show);
    view.maps = S.layer < side.layers && way_ ? mapsOf(side, S.layer, S.head, way_) : null;
    view.raw = view.maps;
    if (S.show === "minus_mean" && view.maps) {
      const mean = meanOf(view.maps.filter((m, i) => m && (side.tokens[i] >= 0 || side.kind !== "memory")));
      view.maps = view.maps.map((m) => m && subtract(m, mean));
    }
    view.pin = S.pin === null ? -1 : tokenOf(side, S.pin);
    if (S.show === "minus_pin") view.maps = view.maps?.[view.pin] ? view.maps.map((m) => m && subtract(m, view.raw[view.pin])) : null;
    view.t = tokenOf(side, S.token);
  }
  function draw() {
    painting = 0;
    if (!shown || !photo?.complete || !root.clientWidth) return; // hidden: the observer of the size comes back
    const sides = views.filter((v) => !v.difference);
    sides.forEach(compute);
    const all = sides.flatMap((v) => (v.maps ?? []).filter((m, t) => m && (S.same_scale || t === v.t)));
    const flat = new Float32Array(all.reduce((n, m) => n + m.length, 0));
    all.reduce((n, m) => { flat.set(m, n); return n + m.length; }, 0);
    const scale = makeScale(S.scale, flat, main().uniform, sides[0].signed, main().grid[0] * main().grid[1]);
    for (const view of views) {
      if (view.difference) continue;
      view.tileScale = view.largeScale = scale;
      if (S.show === "caption") view.largeScale = makeScale(S.scale, Float32Array.from(sides.flatMap((v) => patchesOf(v.side) ?? [])), 0, true, view.side.grid[0] * view.side.grid[1]);
      drawTiles(view);
      drawGrid(view);
    }
    for (const view of views) drawLarge(view);
    const alike = sides[0].raw && alikeness(sides[0].raw.filter((m, t) => m && finite(m) && main().tokens[t] >= 0));
    about.textContent = `${main().title || main().name}, ${main().kind === "memory" ? `${main().all} memory token${main().all === 1 ? "" : "s"}` : "no memory"}${alike === null ? "" : `: mean cosine of the maps of two ${main().kind === "memory" ? "tokens" : "patches"} ${alike.toFixed(2)}${alike > 0.95 ? ", they look alike here" : ""}`}`;
    for (const update of Object.values(selects)) update();
    opacity.value = S.opacity;
    mark();
    drawBelow();
  }
  const request = () => { painting ||= requestAnimationFrame(draw); };

  function drawLarge(view) {
    const { side, canvas } = view, t = preview !== null && view === views[0] ? preview : view.t;
    if (!view.difference && !view.largeScale) return;
    let values = S.show === "caption" ? patchesOf(side) : view.maps?.[t], scale = view.largeScale;
    if (view.difference) {
      const [a, b] = views.filter((v) => !v.difference).map((v) => (S.show === "caption" ? patchesOf(v.side) : v.maps?.[v.t]));
      values = a && b && finite(a) && finite(b) ? subtract(Float32Array.from(a), b) : null;
      scale = values && makeScale(S.scale, values, 0, true, values.length);
    }
    view.values = values;
    const ratio = shown.height / shown.width, wide = Math.round(canvas.clientWidth || 480), dense = Math.min(2, globalThis.devicePixelRatio || 1);
    if (canvas.width !== wide * dense) Object.assign(canvas, { width: wide * dense, height: Math.round(wide * dense * ratio) });
    canvas.style.aspectRatio = `${shown.width} / ${shown.height}`;
    if (canvas.height !== Math.round(canvas.width * ratio)) canvas.height = Math.round(canvas.width * ratio);
    const known = values && finite(values) && scale.most > 1e-12 && (view.difference || S.show !== "minus_pin" || t !== view.pin); // not two equal maps
    drawMap(canvas, photo, values, side.grid, scale, S.opacity);
    if (known && !view.difference) outline(canvas, largest(S.show === "minus_pin" ? values.map(Math.abs) : values), side.grid, [6, 4]); // the patch that the sentence names
    outline(canvas, movedPatch(S.patch, main().grid, side.grid), side.grid, []);
    if (known) scaleBar(view.scale, scale, side.uniform, S.opacity); else view.scale.replaceChildren();
    view.scale.style.visibility = known ? "visible" : "hidden";
    view.info.textContent = describe(view, t, values);
    canvas.setAttribute("aria-label", `image ${shown.index}: ${view.info.textContent} Arrows choose a patch.`);
  }
  function describe(view, t, values) {
    const side = view.side;
    const far = values ? largest(values.map(Math.abs)) : 0; // of a signed map
    if (view.difference) return !values ? "No difference is shown: a map is missing or not finite." : values[far] ? `The difference is largest at ${placeName(far, side)}: ${number(values[far])}.` : "The two maps are equal.";
    if (values && !finite(values)) return `${tokenName(side, side.tokens[t])}, layer ${S.layer}: the map is not finite (NaN). Weights of ${side.name} may have diverged.`;
    const score = scoreOf(side);
    if (S.show === "caption" && values && score && !score.exact) return `Relevance of each patch for “${S.caption}” by gradients, on an arbitrary scale: ${side.name} has no exact contributions.`;
    if (S.show === "caption" && values && word) return `The word “${score.words[word - 1]}” changes the cosine by ${number(score.word_scores[word - 1])}; the map shows by how much it changes the contribution of each patch.`;
    if (S.show === "caption") return values ? `Direct contribution of each patch to the cosine with “${S.caption}”; together ${number(total(values))}.` : answered[S.caption] || !host.score ? `${side.name} has no such decomposition.` : "Waiting for the contributions …";
    if (t < 0) return `${side.name} has no ${tokenName(main(), S.token)}${side.kind === "memory" ? `: it has ${side.all} memory token${side.all === 1 ? "" : "s"}` : ": it has no memory tokens"}.`;
    if (S.layer >= side.layers) return `${side.name} has ${side.layers} layers; layer ${S.layer} does not exist.`;
    if (!values && !side.blocks[S.layer]) return "Waiting for the maps of this layer …";
    if (!values && S.show === "minus_pin" && view.raw?.[t]) return "The pinned token has no map here; pin another by shift-click or p.";
    if (!values) return side.tokens[t] < 0 ? `Attention to CLS is not recorded: choose ${side.has.includes("reads") ? "“what the token reads”" : "a memory token"}.` : `${side.name}: memory outside the sequence never attends to patches; choose “who reads the token”.`;
    if (S.show === "minus_pin" && view.pin === t) return `${tokenName(side, side.tokens[t])} is pinned: choose another token to see the difference of their maps.`;
    if (S.show === "minus_pin" && view.pin >= 0) return `${tokenName(side, side.tokens[t])} minus ${tokenName(side, side.tokens[view.pin])}: cosine of the two maps ${cosine(view.raw[t], view.raw[view.pin]).toFixed(2)}, largest difference ${number(values[far])} at ${placeName(far, side)}.`;
    return sentence(side, { ...S, direction: way() }, t, view.raw[t], view.raw);
  }

  const scoreOf = (side) => (host.score ? answered[S.caption] : null)?.[side.name] ?? (S.caption === (shown.captions[0] || "") || !host.score ? side.score : null);
  const patchesOf = (side) => (word ? scoreOf(side)?.word_maps?.[word - 1]?.map((v) => v * (scoreOf(side).unit ?? 1)) : side.by_patch); // a page has integers

  function drawTiles(view) {
    makeTiles(view);
    const { side, maps, raw } = view, use = usage(side, S.layer, S.head), most = Math.max(1e-12, ...use.filter((u) => u === u));
    const order = orderOf(side, S.sort, raw, use), wide = view.list.clientWidth + 1, tall = (w) => Math.round((w - 4) * shown.height / shown.width) + 23;
    const fits = (w) => Math.ceil(order.length / Math.floor(wide / (w + 5))) * tall(w) <= 400, size = [...Array(137).keys()].map((i) => 200 - i).find(fits) ?? 64;
    view.list.style.setProperty("--tile", `${size}px`);
    view.list.style.setProperty("--tall", fits(size) ? "404px" : `${(Math.floor(370 / tall(size)) + 0.5) * tall(size)}px`); // half a row says that more follow
    view.tiles.forEach(({ tile, canvas, use: line }, t) => {
      Object.assign(canvas, { width: 2 * size - 8, height: Math.round((2 * size - 8) * shown.height / shown.width) });
      drawMap(canvas, photo, maps?.[t], side.grid, view.tileScale, S.opacity);
      tile.classList.toggle("missing", !maps?.[t]);
      line.style.width = `${(use[t] || 0) / most * 100}%`;
      const words = `${tokenName(side, side.tokens[t])}${use[t] === use[t] ? `, ${side.has.includes("read_by") ? "gets" : "gives patches"} ${percent(use[t])} of ${side.has.includes("read_by") ? "the patches'" : "its"} attention` : ""}`;
      tile.title = words;
      tile.setAttribute("aria-label", words);
      tile.setAttribute("aria-selected", String(t === view.t));
      tile.classList.toggle("pinned", t === view.pin);
      if (t === view.pin) tile.setAttribute("aria-label", `${words}, pinned`);
      tile.tabIndex = t === Math.max(view.t, 0) ? 0 : -1;
    });
    const wanted = order.map((t) => view.tiles[t].tile);
    if (wanted.some((tile, i) => view.list.children[i] !== tile) || view.list.children.length !== wanted.length) view.list.replaceChildren(...wanted);
    if (view.t >= 0 && view.last !== `${view.t} ${S.sort}`) {
      const tile = view.tiles[view.t].tile, box = view.list; // scrollIntoView would scroll the notebook
      box.scrollTo({ top: tile.offsetTop - box.offsetTop - box.clientHeight / 3, left: tile.offsetLeft - box.offsetLeft - box.clientWidth / 3 });
      view.last = `${view.t} ${S.sort}`;
    }
    view.list.onkeydown = (e) => {
      const at = order.indexOf(view.t), step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[e.key], next = order[at + step];
      if (!step) return;
      e.preventDefault();
      if (next === undefined) return;
      set({ token: side.tokens[next] < 0 ? "cls" : side.tokens[next] });
      view.tiles[next].tile.focus({ preventScroll: true });
    };
  }

  function drawGrid(view) {
    const { side, grid } = view, measure = QUANTITIES[view.quantity.value], high = Math.max(10, Math.min(18, Math.round(200 / side.layers)));
    view.columns = side.blocks.some((b) => b) && side.blocks.every((b) => !b || b.heads === 1) ? 1 : side.heads + 1; // a page may keep only the mean of the heads
    view.cells = [...Array(side.layers).keys()].map((l) => {
      if (!side.blocks[l]) return [];
      return ["mean", ...Array(view.columns - 1).keys()].map((h) => { const map = side.has.includes(way()) && view.t >= 0 && (h === "mean" || side.blocks[l].heads > 1) ? mapsOf(side, l, h, way())?.[view.t] : null; return map && finite(map) ? measure(map, side) : undefined; });
    });
    const range = paintGrid(grid, view.cells, view.columns, S.layer, S.head === "mean" ? 0 : Math.min(S.head + 1, view.columns - 1), high, getComputedStyle(root).color);
    view.legend = range ? [element("span", number(range[0])), element("span", "", `display:inline-block;width:110px;height:10px;margin:0 6px;border-radius:2px;background:linear-gradient(to right,${range[2]})`), element("span", number(range[1]))] : [];
    showLegend(view);
  }
  function showLegend(view) { view.gridNote.replaceChildren(...(view.legend ?? [])); }

  const said = make(below, "section", "words"), box = make(said, "label", "", "caption "), typed = make(box, "input"), words = make(said, "div");
  box.hidden = !host.score;
  typed.onchange = () => set({ caption: typed.value });
  function drawBelow() {
    below.replaceChildren(said); // a caption being typed stays
    words.replaceChildren();
    note.textContent = shown.words || "";
    if (document.activeElement !== typed) typed.value = S.caption;
    for (const side of shown.sides) {
      const score = scoreOf(side);
      if (!score) continue;
      const prefix = shown.sides.length > 1 ? `${side.name}: ` : "";
      words.append(element("p", prefix + score.text));
      if (score.words?.length && side === main()) {
        const line = make(words, "p", "spans");
        [`“${S.caption}”`, ...score.words].forEach((text, i) => {
          const change = i ? `: ${score.word_scores[i - 1] < 0 ? "" : "+"}${number(score.word_scores[i - 1])}` : "", pick = button(line, text, i ? `Show the patches of the word ${text}, which changes the cosine by ${number(score.word_scores[i - 1])}` : "Show the patches of the whole caption", () => { word = i; set({ show: "caption" }); });
          make(pick, "small", "", change);
          pick.setAttribute("aria-pressed", String(S.show === "caption" && word === i));
        });
      }
      if (score.others?.length > 3) words.append(histogram(score), element("p", "Number of captions by their cosine with the image; orange: this caption."));
      if (score.adds) below.append(bars(`${prefix}Direct contribution of each token to the cosine`, score.adds, score.adds.map((_, m) => `token ${m}`), Math.max(1e-12, ...score.adds.map(Math.abs))));
      if (score.parts) below.append(bars(`${prefix}Parts of the cosine`, Object.values(score.parts), Object.keys(score.parts).map((k) => k === "first" ? "embedding" : k), Math.max(1e-12, ...Object.values(score.parts).map(Math.abs))));
    }
    if (S.patch < 0 || main().kind !== "memory") return void words.append(element("p", main().kind === "memory" ? "Click a patch to see its attention to memory, and the attention of memory to it." : ""));
    for (const side of shown.sides) {
      if (side.kind !== "memory" || !side.blocks[S.layer]) continue;
      const patch = movedPatch(S.patch, main().grid, side.grid), memory = [...side.tokens.keys()].filter((t) => side.tokens[t] >= 0), names = memory.map((t) => `token ${side.tokens[t]}`);
      const lists = ["reads", "read_by"].map((w) => { const maps = mapsOf(side, S.layer, S.head, w); return maps && finite(maps[memory[0]]) && memory.map((t) => maps[t][patch]); });
      const top = Math.max(2 * side.uniform, ...lists.flatMap((l) => l || [])), here = `the patch at ${placeName(patch, side)}`, prefix = shown.sides.length > 1 ? `${side.name}: ` : "";
      if (lists[0]) below.append(bars(`${prefix}Attention of memory tokens to ${here}`, lists[0], names, top, side.uniform));
      if (lists[1]) below.append(bars(`${prefix}Attention of ${here} to memory tokens: ${percent(total(lists[1]))} in total`, lists[1], names, top, side.uniform));
    }
  }

  // State ---------------------------------------------------------------------------------------------------------
  function take(changes) { // from here or from the host
    const image = changes.image !== undefined && changes.image !== S.image, sorted = changes.gallery !== undefined && changes.gallery !== S.gallery;
    if (image || (changes.caption !== undefined && changes.caption !== S.caption)) word = 0;
    Object.assign(S, changes);
    if (sorted) sortGallery();
    if (changes.show === "reads" || changes.show === "read_by") S.direction = changes.show;
    else if (changes.direction && ["reads", "read_by"].includes(S.show)) S.show = changes.direction;
    if (image) { mark(); ask(); } else request();
  }
  function set(changes) {
    say("");
    if (changes.show === "reads" || changes.show === "read_by") changes.direction = changes.show;
    take(changes);
    host.set(changes);
  }
  function ask() {
    const first = Math.floor(Math.max(0, all().indexOf(S.image)) / GALLERY) * GALLERY;
    if (first !== from || !strip.children.length) { from = first; page(0); }
    if (S.gallery !== "index" && !order) sortGallery();
    root.setAttribute("aria-busy", "true");
    if (!shown) say(WAITING);
    host.want(S.image);
  }
  function show(data) { // a new image, whose layers may still come
    shown = data;
    if (message.textContent === WAITING) say("");
    answered = {};
    if (!views.length) {
      data.sides.forEach((side, s) => views.push(makeView(side, s)));
      if (data.sides.length > 1 && String(data.sides[0].grid) === String(data.sides[1].grid)) views.push(makeView(data.sides[0], 0, true));
      stage.append(...views.map((v) => v.figure));
      (data.sides.length > 1 ? panels : stage).append(...views.filter((v) => v.panel).map((v) => v.panel)); // of two models in a row of their own
    } else for (const view of views) view.side = data.sides[view.s];
    if (!possible(S.show)) S.show = S.direction;
    photo = new Image();
    photo.onload = () => { root.setAttribute("aria-busy", "false"); draw(); };
    photo.src = data.src;
  }
  function progress(done, all, work = false) { // of the maps, or of work in the background
    bar.hidden = done >= all;
    stop.hidden = bar.hidden || !work;
    if (bar.hidden && work) waiting = "";
    Object.assign(bar, { max: all, value: done });
    request();
  }

  // Export --------------------------------------------------------------------------------------------------------
  async function save(kind) {
    const view = views[0], name = `image${shown?.index}_layer${S.layer}_${S.head}_${S.token}`;
    if (!view?.values) return say("There is no map to save.", true);
    const scale = view.largeScale, words = view.info.textContent;
    const text = { csv: () => csvOf(view.values, view.side), svg: () => svgOf(shown.src, view.values, view.side, scale, S.opacity, words, shown.height / shown.width) }[kind];
    download(`${name}.${kind}`, text ? new Blob([text()], { type: { csv: "text/csv", svg: "image/svg+xml" }[kind] }) : await pngOf(view.canvas, words));
  }
  function copy() {
    const text = pythonOf({ ...S, image: shown?.index ?? S.image }), done = () => say(text);
    navigator.clipboard ? navigator.clipboard.writeText(text).then(done, done) : done();
  }

  // Keys: what is typed here stays here; keys with Ctrl, Meta or Alt and Shift+Enter reach the notebook
  root.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || (e.shiftKey && e.key === "Enter")) return;
    e.stopPropagation();
    if (["INPUT", "SELECT"].includes(e.target.tagName)) return;
    const around = (list, now, step) => list[(list.indexOf(now) + step + list.length) % list.length];
    const go = (step) => { const next = all()[all().indexOf(S.image) + step]; if (next !== undefined) set({ image: next }); };
    const heads = ["mean", ...Array(host.models[0].heads).keys()], tokens = (main()?.tokens ?? []).map((t) => (t < 0 ? "cls" : t));
    const acts = {
      j: () => go(1), k: () => go(-1),
      "[": () => S.layer > 0 && set({ layer: S.layer - 1 }), "]": () => S.layer + 1 < host.models[0].layers && set({ layer: S.layer + 1 }),
      h: () => set({ head: around(heads, S.head, 1) }), H: () => set({ head: around(heads, S.head, -1) }),
      t: () => set({ token: around(tokens, S.token, 1) }), T: () => set({ token: around(tokens, S.token, -1) }),
      p: () => pin(S.token),
      m: () => set({ show: around(Object.keys(SHOWS).filter(possible), S.show, 1) }),
      Escape: () => set({ patch: -1 }), "?": () => { help.hidden = !help.hidden; },
    };
    if (!acts[e.key]) return;
    e.preventDefault();
    acts[e.key]();
  });
  const watch = new ResizeObserver(request), theme = new MutationObserver(() => setTimeout(request, 300)), dark = matchMedia("(prefers-color-scheme: dark)");
  watch.observe(root);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-theme", "class"] }); // the grid is painted in the ink of the page, which follows
  dark.addEventListener("change", request);
  for (const update of Object.values(selects)) update();
  ask();
  return { show, thumbs, ordered, take, progress, say, counted: (n) => { for (let i = host.count; i < n; i++) order?.unshift(i); host.count = n; mark(); page(0); }, scored: (caption, found) => { answered[caption] = found; for (const side of shown?.sides ?? []) side.by_patch = found[side.name]?.by_patch ?? side.by_patch; request(); },
           stop: () => { watch.disconnect(); theme.disconnect(); dark.removeEventListener("change", request); }, state: () => ({ ...S }) };
}
