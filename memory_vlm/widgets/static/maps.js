// The numbers of the attention explorer: unpacking, scales, order and words. No document is used, so node can run it.

// One layer of one model: a byte is the square root of a value, so that small values keep their precision.
function openLayer(side, layer) {
  const block = side.blocks[layer];
  if (!block) return null;
  if (block.open) return block.open;
  const open = { heads: block.heads, cache: {} };
  for (const way of ["reads", "read_by"]) {
    const packed = block[way];
    if (!packed) continue;
    const raw = typeof packed.data === "string" ? bytes(packed.data) : packed.data, out = new Float32Array(raw.length), size = raw.length / block.heads;
    for (let h = 0; h < block.heads; h++) {
      const unit = (packed.max[h] ?? NaN) / 65025; // null: the attention of this head is not finite
      for (let i = h * size; i < (h + 1) * size; i++) out[i] = unit * raw[i] * raw[i];
    }
    open[way] = out;
  }
  return (block.open = open);
}

// The map of each token, null where there is none. A block that keeps only the mean of heads gives it for every head.
function mapsOf(side, layer, head, way) {
  const open = openLayer(side, layer), P = side.grid[0] * side.grid[1], T = side.tokens.length, key = `${head} ${way}`;
  if (!open?.[way]) return null;
  if (open.cache[key]) return open.cache[key];
  const chosen = head === "mean" || open.heads === 1 ? [...Array(open.heads).keys()] : [head];
  return (open.cache[key] = side.tokens.map((token, t) => {
    if (way === "read_by" && token < 0 && side.kind === "memory") return null; // attention to CLS is not recorded
    const out = new Float32Array(P);
    for (const h of chosen) for (let p = 0, from = (h * T + t) * P; p < P; p++) out[p] += open[way][from + p] / chosen.length;
    return out;
  }));
}

const total = (values) => values.reduce((a, b) => a + b, 0);
const finite = (values) => values.every(Number.isFinite);
const largest = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
const subtract = (a, b) => a.map((v, i) => v - b[i]);

function meanOf(maps) {
  const out = new Float32Array(maps[0].length);
  for (const map of maps) for (let p = 0; p < out.length; p++) out[p] += map[p] / maps.length;
  return out;
}

function cosine(a, b) {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) { ab += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  return ab / Math.max(Math.sqrt(aa * bb), 1e-20);
}

// Mean cosine of all pairs of maps.
function alikeness(maps) {
  if (maps.length < 2) return null;
  const unit = maps.map((m) => { const length = Math.sqrt(cosineNorm(m)) || 1; return m.map((v) => v / length); });
  const sum = new Float32Array(maps[0].length);
  for (const m of unit) for (let p = 0; p < sum.length; p++) sum[p] += m[p];
  return (cosineNorm(sum) - maps.length) / (maps.length * (maps.length - 1));
}
const cosineNorm = (m) => m.reduce((a, v) => a + v * v, 0);

function quantile(values, q) {
  const sorted = Float32Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] ?? 0;
}

// A scale: `at(value)` is 0..1, or -1..1 for a signed scale. The robust scale ends at the 99th
// percentile, below the largest patch of every map (an outlier is often the same in all), and at least at 3 x uniform.
function makeScale(kind, values, uniform, signed, patches = Infinity) {
  const known = values.filter(Number.isFinite), sizes = signed ? known.map(Math.abs) : known, most = sizes.reduce((a, b) => Math.max(a, b), 1e-12);
  const high = kind === "robust" ? Math.max(quantile(sizes, 1 - Math.max(0.01, 1.5 / patches)), signed ? 0 : 3 * uniform, 1e-12) : most;
  const low = Math.min(uniform / 10, high / 10), curve = {
    sqrt: (x) => Math.sqrt(x), log: (x) => Math.max(0, Math.log(x * high / low) / Math.log(high / low)),
  }[kind] ?? ((x) => x);
  const at = (v) => { const x = curve(Math.min(Math.abs(v) / high, 1)); return signed && v < 0 ? -x : x; };
  return { kind, high, most, signed, cut: most > high * 1.001, at };
}

// How much the patches attend to each token (where it is known), else the share of its attention that is on patches.
function usage(side, layer, head) {
  const by = mapsOf(side, layer, head, "read_by"), reads = mapsOf(side, layer, head, "reads"), P = side.grid[0] * side.grid[1];
  return side.tokens.map((_, t) => (by?.[t] ? total(by[t]) / P : by ? NaN : reads?.[t] ? total(reads[t]) : NaN));
}

function orderOf(side, sort, maps, use) {
  const all = [...side.tokens.keys()];
  if (sort === "index" || !maps) return all;
  const others = maps.filter((m, i) => m && (side.tokens[i] >= 0 || side.kind !== "memory")); // without CLS, as "minus mean of tokens"
  if (!others.length) return all;
  const mean = meanOf(others), key = sort === "use" ? use : maps.map((m) => (m ? 1 - cosine(m, mean) : -1));
  return all.sort((a, b) => (Number.isNaN(key[b]) ? -1 : key[b]) - (Number.isNaN(key[a]) ? -1 : key[a]) || a - b);
}

// What the cells of the layer x head grid show about one token.
const QUANTITIES = {
  "peak / uniform": (map, side) => map[largest(map)] / side.uniform,
  "share on patches": (map) => total(map),
  "entropy": (map) => { const sum = total(map) || 1; return -map.reduce((a, v) => a + (v > 0 ? v / sum * Math.log2(v / sum) : 0), 0); },
};

const tokenName = (side, token) => (token < 0 ? "CLS" : `${side.kind === "memory" ? "token" : "patch"} ${token}`);
const percent = (v) => `${(v * 100).toFixed(v < 0.1 ? 1 : 0)}%`;
const times = (v, side) => `${(v / side.uniform).toFixed(1)} times uniform`;
function placeName(p, side) { return `row ${Math.floor(p / side.grid[1])}, column ${p % side.grid[1]}`; }

// One sentence about the map of the chosen token.
function sentence(side, state, t, map, maps) {
  const left = state.head !== "mean" && side.heads > 1 && side.blocks?.[state.layer]?.heads === 1; // a page may keep only the mean of the heads
  const head = left ? "mean of heads (this page has no single heads of this layer)" : state.head === "mean" ? "mean of heads" : `head ${state.head}`;
  const where = `${tokenName(side, side.tokens[t])}, layer ${state.layer}, ${head}`, best = largest(map);
  const share = state.direction === "reads" ? `${percent(total(map))} of its attention is on patches` : `on average it receives ${percent(total(map) / map.length)} of the attention of a patch`;
  const rest = maps.filter((m, i) => m && i !== t && side.tokens[i] >= 0);
  const alike = rest.length ? ` Cosine with the mean map of ${side.kind === "memory" ? "the other tokens" : side.tokens[t] < 0 ? "the patches" : "the other patches"}: ${cosine(map, meanOf(rest)).toFixed(2)}.` : "";
  return `${where}: ${share}, maximum ${number(map[best])} at ${placeName(best, side)}, ${times(map[best], side)}.${alike}`;
}

// The patch of another grid at the same position in the image.
function movedPatch(patch, from, to) {
  if (patch < 0) return patch;
  const row = Math.floor(patch / from[1]), column = patch % from[1];
  return Math.floor((row + 0.5) * to[0] / from[0]) * to[1] + Math.floor((column + 0.5) * to[1] / from[1]);
}
