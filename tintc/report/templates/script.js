"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// Figures, in the page's colours, and the lists that say which of its grids a figure shows.
const views = {};
function draw() {
  const ink = JSON.stringify(getComputedStyle(document.body).color);
  const all = Object.entries(data.figures).map(([name, spec]) => {
    const coloured = JSON.parse(JSON.stringify(spec).replaceAll('"currentColor"', ink));
    const options = { mode: "vega-lite", ...spec.usermeta.embedOptions };
    return vegaEmbed(`#figure-${name}`, coloured, options).then(result => { views[name] = result.view; });
  });
  return Promise.all(all).catch(console.error);
}
window.drawn = draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
for (const list of document.querySelectorAll("select[data-figures]")) {
  list.addEventListener("change", () => {
    for (const name of list.dataset.figures.split(" ")) views[name].signal("shown", list.value).runAsync();
  });
}

// One selection in the auxiliary's graph and in the simulator's lanes.
const drawer = document.getElementById("drawer");
function choose(name) {
  for (const node of document.querySelectorAll(".node")) node.classList.toggle("chosen", node.dataset.node === name);
  for (const article of drawer.querySelectorAll("article")) {
    article.classList.toggle("shown", article.id === `about-${name}`);
  }
  drawer.hidden = !name;
  drawer.scrollTop = 0;
}
for (const node of document.querySelectorAll(".node")) {
  node.addEventListener("click", () => choose(node.dataset.node));
  node.addEventListener("keydown", event => { if (event.key === "Enter") choose(node.dataset.node); });
}
document.getElementById("close").addEventListener("click", () => choose(""));
document.addEventListener("keydown", event => { if (event.key === "Escape") choose(""); });

// A click on a token that was scored marks the train tokens that have changed its prediction.
const tokens = [...document.querySelectorAll(".tokens span")];
const teachers = document.getElementById("teachers");
function explain(place) {
  const shares = data.shares[place];
  const most = Math.max(...shares.map(Math.abs)) || 1;
  tokens.forEach((token, at) => {
    token.classList.toggle("chosen", at === place);
    const weight = at < shares.length ? Math.max(0, shares[at]) / most : 0;
    token.classList.toggle("teacher", weight > 0.03);
    token.style.setProperty("--weight", weight.toFixed(3));
  });
  const best = shares.map((share, at) => [share, at]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  const named = best.map(([share, at]) => `“${data.tokens[at]}” (${(100 * share).toFixed(2)} %)`).join(", ");
  teachers.textContent = `The prediction of “${data.tokens[place]}” was changed most by what was read at ${named}.`;
}
for (const token of document.querySelectorAll(".tokens [data-place]")) {
  token.addEventListener("click", () => explain(Number(token.dataset.place)));
}
