"""Measures of a page in Chromium: contrast of its text, and names of what can be focused."""

# Each text with its ratio of luminances (WCAG 2.2, 1.4.3): colors are composed over all backgrounds below them.
_CONTRAST = """(root) => {
  const dot = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const pen = dot.getContext("2d", {willReadFrequently: true});
  const parse = (color) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = "#000";
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(
      (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  function background(el) {
    const layers = [];
    for (let e = el; e; e = e.parentElement ?? e.getRootNode().host) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3]) layers.unshift(c);
      if (c[3] === 1) break;
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches
      && getComputedStyle(document.documentElement).colorScheme.includes("dark");
    const page = dark ? [18, 18, 18, 1] : [255, 255, 255, 1];
    return layers.reduce((below, top) => over(top, below), page);
  }
  const found = [];
  function check(el, text, style) {
    const visible = el.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!visible || el.closest("[disabled], .mod-disabled")) return;
    const box = el.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const svg = el instanceof SVGElement, below = background(el);
    const color = parse(svg ? style.fill : style.color);
    if (svg) color[3] *= +style.fillOpacity;
    for (let e = el; e; e = e.parentElement) color[3] *= +getComputedStyle(e).opacity;
    const [a, b] = [light(over(color, below)), light(below)], size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const ratio = Math.round((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) * 100) / 100;
    found.push({text: text.trim().slice(0, 40), ratio, large, color: style.color, below: below.join()});
  }
  const skipped = "script, style, option, title, defs, template, noscript, iframe, .jp-OutputPrompt";
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement, text = walker.currentNode.data;
    if (text.trim() && !el.closest(skipped)) check(el, text, getComputedStyle(el));
  }
  for (const el of root.querySelectorAll("input, textarea, select")) {
    if (["checkbox", "range", "file", "radio"].includes(el.type)) continue;
    if (el.value) check(el, el.selectedOptions?.[0]?.textContent ?? el.value, getComputedStyle(el));
    else if (el.placeholder) check(el, el.placeholder, getComputedStyle(el, "::placeholder"));
  }
  return found;
}"""


def pale(where):
    "Return the texts of an element whose contrast is below WCAG AA, 4.5 (large text: 3), and the number of texts."
    found = where.evaluate(_CONTRAST)
    return [f for f in found if f['ratio'] < (3 if f['large'] else 4.5)], len(found)


def nameless(page, selector):
    "Return the role and element of all that can be focused or is an image, without a name; and the number of all."
    client = page.context.new_cdp_session(page)
    found = []
    for i in range(page.locator(selector).count()):
        handle = page.locator(selector).nth(i).element_handle()
        handle.evaluate('e => { window.asked = e; }')
        node = client.send('Runtime.evaluate', dict(expression='window.asked'))['result']['objectId']
        found += client.send('Accessibility.queryAXTree', dict(objectId=node))['nodes']
    def is_focusable(n):
        return any(p['name'] == 'focusable' and p['value'].get('value') for p in n.get('properties', []))
    asked = [n for n in found if not n['ignored'] and (is_focusable(n) or n['role']['value'] in ('image', 'img'))
             and n['role']['value'] not in ('document', 'RootWebArea', 'generic')] # generic: a region that scrolls
    bare = [n for n in asked if not n.get('name', {}).get('value', '').strip()]
    shown = [client.send('DOM.getOuterHTML', dict(backendNodeId=n['backendDOMNodeId']))['outerHTML'][:200]
             for n in bare]
    client.detach()
    return [(n['role']['value'], s) for n, s in zip(bare, shown)], len(asked)
