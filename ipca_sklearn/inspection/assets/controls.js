// What the controls and the keys do, and the address of the page, which keeps their state.

const inAddress = { label: "all", sort: "anomalous", text: "", heat: "60" };

const remember = () => {
  const state = new URLSearchParams();
  if (threshold !== atStart) state.set("threshold", String(threshold));
  for (const [id, usual] of Object.entries(inAddress)) if (byId(id).value !== usual) state.set(id, byId(id).value);
  if (byId("group").checked) state.set("group", "1");
  if (!byId("outlines").checked) state.set("outlines", "0");
  history.replaceState(null, "", `#${state}`);
};

const recall = () => {
  const state = new URLSearchParams(location.hash.slice(1));
  const given = Number(state.get("threshold") ?? NaN);
  threshold = Number.isFinite(given) ? given : atStart;
  slider.value = threshold;
  for (const [id, usual] of Object.entries(inAddress)) {
    byId(id).value = state.get(id) ?? usual;
    if (byId(id).selectedIndex < 0) byId(id).value = usual;
  }
  byId("group").checked = state.has("group");
  byId("outlines").checked = state.get("outlines") !== "0";
  showOutlines();
  byId("viewer-heat-control").value = byId("heat").value;
  update();
};

let waiting = false;
const later = () => {
  if (waiting) return; // one update per frame of the screen is enough
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    update();
    remember();
  });
};

slider.addEventListener("input", () => {
  threshold = Number(slider.value);
  later();
});
for (const id of ["label", "sort", "text", "group"]) byId(id).addEventListener("input", later);
byId("reset").addEventListener("click", () => {
  threshold = atStart;
  slider.value = threshold;
  later();
});
byId("controls").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", recall);
addEventListener("storage", (event) => {
  if (event.key !== ticks.key) return; // another window of this page has ticked
  ticks.read();
  later();
});
byId("save").addEventListener("click", ticks.save);
byId("forget").addEventListener("click", () => {
  if (!confirm(`Forget all ${ticks.size} ticks of this page?`)) return;
  ticks.forget();
  later();
});

let lastHeat = 60;
const setHeat = (value) => {
  byId("heat").value = value;
  byId("viewer-heat-control").value = value;
  if (Number(value)) lastHeat = value;
  later();
};
for (const id of ["heat", "viewer-heat-control"]) byId(id).addEventListener("input", (event) => setHeat(event.target.value));

const showOutlines = () => byId("viewer-frame").classList.toggle("plain", !byId("outlines").checked);
byId("outlines").addEventListener("input", () => {
  showOutlines();
  later();
});

const toggle = (row, label) => {
  ticks.toggle(row, label);
  later();
};

// A list that is filtered by ticks changes while it is gone through: the viewer keeps to what it was opened with.
let gone = [];
const goTo = (index) => {
  const card = gone[index];
  if (card === undefined) return;
  makeCurrent(card);
  viewer.show(rowOf(card), index, gone.length, least);
};

place.addEventListener("click", (event) => {
  const card = event.target.closest("li");
  const button = event.target.closest("button");
  if (card === null || button === null) return;
  makeCurrent(card);
  if (button.dataset.tick) {
    toggle(rowOf(card), button.dataset.tick);
    return;
  }
  gone = shown;
  goTo(gone.indexOf(card));
});
place.addEventListener("focusin", (event) => makeCurrent(event.target.closest("li")));

const TICK_KEYS = { g: "good", d: "defect" };
const isPlain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey;

place.addEventListener("keydown", (event) => {
  const card = event.target.closest("li");
  if (card === null || !isPlain(event)) return;
  const label = TICK_KEYS[event.key.toLowerCase()];
  if (label) toggle(rowOf(card), label);
  if (!/^(Arrow|Home$|End$)/.test(event.key)) return;
  event.preventDefault();
  neighbour(shown, card, event.key)?.querySelector(".open").focus();
});

viewer.dialog.addEventListener("keydown", (event) => {
  if (!isPlain(event)) return;
  const pressed = event.key.toLowerCase();
  if (TICK_KEYS[pressed]) toggle(viewer.row, TICK_KEYS[pressed]);
  if (pressed === "h") setHeat(Number(byId("heat").value) ? 0 : lastHeat);
  if (pressed === "o") byId("outlines").click();
  if (event.target.type === "range") return; // it has the arrow keys itself
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) goTo(gone.indexOf(current) + step);
});
byId("previous").addEventListener("click", () => goTo(gone.indexOf(current) - 1));
byId("next").addEventListener("click", () => goTo(gone.indexOf(current) + 1));
byId("close").addEventListener("click", () => viewer.dialog.close());
viewer.dialog.addEventListener("click", (event) => {
  if (event.target === viewer.dialog) viewer.dialog.close(); // beside it
  const label = event.target.closest("[data-tick]")?.dataset.tick;
  if (label) toggle(viewer.row, label);
});
viewer.dialog.addEventListener("close", () => {
  const back = current.hidden ? shown[0] : current;
  back?.querySelector(".open").focus();
});

recall();
