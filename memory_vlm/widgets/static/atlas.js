// The memory atlas of a saved page: cards that can be sorted.

function start(id) {
  const root = document.getElementById(id), data = JSON.parse(document.getElementById(`${id}-data`).textContent);
  const label = root.appendChild(element("label", "order ", "display:block;margin:1rem 0")), select = label.appendChild(element("select"));
  const cards = root.appendChild(element("div", "", "display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:.7rem"));
  for (const name of data.orders) select.append(element("option", name));

  const made = data.cards.map((card) => {
    const box = element("section", "", "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:.6rem;font-size:.8rem");
    const crops = element("div", "", "display:flex;flex-wrap:wrap;gap:3px;margin:.3rem 0");
    for (const url of card.crops) crops.append(Object.assign(new Image(64, 64), { src: url, alt: `patch with the most attention, ${card.title}` }));
    box.append(element("b", card.title), element("div", card.usage), crops, element("div", card.words), element("div", card.reset));
    return { box, keys: card.keys };
  });
  function draw() {
    const order = select.selectedIndex, sign = data.orders[order].startsWith("last reset") ? -1 : 1;
    cards.replaceChildren(...[...made].sort((a, b) => sign * (a.keys[order] - b.keys[order])).map((m) => m.box));
  }
  select.onchange = draw;
  draw();
}
