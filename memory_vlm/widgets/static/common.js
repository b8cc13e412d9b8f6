// Functions shared by the scripts of widgets and saved pages; all files are inserted into one module or function.

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const number = (v) => (v !== 0 && Math.abs(v) < 1e-4 ? v.toExponential(0) : String(+v.toPrecision(Math.abs(v) < 0.01 ? 2 : 3)));

function element(tag, text = "", style = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.style.cssText = style;
  return made;
}

// Bars around zero: positive to the right, negative to the left, the largest first.
function bars(title, values, names, top, uniform) {
  const box = element("section"), grid = box.appendChild(element("div")), limit = 8;
  box.className = "mvlm-bars";
  const signed = values.some((v) => v < 0), zero = signed ? 50 : 0, width = signed ? 50 : 100, size = (i) => Math.abs(values[i]);
  const all = [...values.keys()], big = Math.max(...values.map(Math.abs)), digits = Math.min(Math.max(2 - Math.floor(Math.log10(big)), 0), 9), fixed = (v) => (big < 1e-4 || !Number.isFinite(v) ? number(v) : (+v.toFixed(digits) || 0).toFixed(digits)); // as many decimals in all
  const order = all.length > limit ? all.sort((a, b) => size(b) - size(a)).slice(0, limit) : all;
  for (const i of order) {
    const track = element("div", "", "position:relative;height:11px;background:rgba(128,128,128,.2)"), part = Math.min(size(i) / top, 1) * width;
    track.append(element("div", "", `position:absolute;height:100%;left:${values[i] < 0 ? zero - part : zero}%;width:${part}%;background:${values[i] < 0 ? "#D55E00" : "#0072B2"}`));
    if (signed) track.append(element("div", "", "position:absolute;left:50%;width:1px;height:100%;background:currentColor"));
    if (uniform) track.append(element("div", "", `position:absolute;left:${Math.min(uniform / top, 1) * 100}%;width:2px;height:100%;background:currentColor`));
    grid.append(element("div", names[i], "white-space:nowrap"), track, element("div", fixed(values[i]), "text-align:right;font-variant-numeric:tabular-nums"));
  }
  box.prepend(element("h4", title));
  if (values.length > limit) box.append(element("div", `and ${values.length - limit} smaller ones`));
  return box;
}
