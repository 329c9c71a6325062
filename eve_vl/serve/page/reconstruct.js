// The panel in which a person masks patches of an image, and the run reconstructs them.

import { call } from "./api.js";
import { debounced, el, Examples, field, Latest, png, ImageField, runChoice, Status } from "./parts.js";

const PAUSE = 200; // milliseconds after the last change
const SHARE = 0.75; // as in pre-training

export function reconstructPanel(runs, chosen, sample) {
  const latest = new Latest();
  const status = new Status();
  const soon = debounced(reconstruct, PAUSE);
  const run = runChoice(runs, () => (reset(), list()));
  const image = new ImageField("Image", (value, isExample) => (isExample || chosen(value), reset()));
  const text = el("textarea", { name: "text", rows: 2, placeholder: sample || "What the image shows", oninput: soon });
  const examples = new Examples((example) => {
    text.value = example.text;
    image.set(png(example.image), true);
    views.scrollIntoView({ block: "nearest" });
  });
  const list = () => examples.show(run.run.examples.reconstruct);
  const grid = el("div", {
    class: "patches",
    role: "group",
    "aria-label": "Patches: Space masks or shows one, arrows move",
    onkeydown: onKey,
  });
  const back = el("img", { alt: "" });
  const board = el("div", { class: "board", hidden: true }, back, grid);
  const reconstructed = el("img", { alt: "The image, reconstructed from the other patches and the caption", hidden: true });
  const buttons = [
    ["Mask 75 % at random", () => draw(SHARE)],
    ["Mask the others", invert],
    ["Show all", () => set(() => false)],
  ];
  const controls = el(
    "p",
    { class: "buttons" },
    ...buttons.map(([label, onclick]) => el("button", { type: "button", onclick }, label)),
  );
  const form = el(
    "form",
    { onsubmit: (event) => (event.preventDefault(), reconstruct()) },
    image.node,
    field("Caption", text, "Change the caption, and the masked patches follow."),
    run.node,
  );
  const views = el(
    "div",
    { class: "views" },
    el("figure", {}, el("figcaption", {}, "Click or drag to mask patches"), board),
    el("figure", {}, el("figcaption", {}, "Reconstructed"), el("div", { class: "board" }, reconstructed)),
  );
  const node = el("section", { class: "panel two" }, examples.node, form, el("div", { class: "result" }, controls, views, status.node));
  let side = 0;
  let brush = null; // what a drag makes of patches: hidden or shown
  reset();
  list();

  grid.addEventListener("pointerdown", (event) => {
    const patch = at(event);
    if (!patch) return;
    event.preventDefault();
    brush = !isHidden(patch);
    mark(patch, brush);
    patch.focus();
  });
  grid.addEventListener("pointermove", (event) => {
    const patch = brush === null ? null : at(event);
    if (patch) mark(patch, brush);
  });
  for (const end of ["pointerup", "pointercancel"]) document.addEventListener(end, () => (brush = null));

  function at(event) {
    const found = document.elementFromPoint(event.clientX, event.clientY);
    return found?.parentNode === grid ? found : null;
  }

  const patches = () => [...grid.children];
  const isHidden = (patch) => patch.getAttribute("aria-pressed") === "true";

  function mark(patch, hide) {
    if (isHidden(patch) === hide) return;
    patch.setAttribute("aria-pressed", String(hide));
    soon();
  }

  function set(hides) {
    patches().forEach((patch, place) => patch.setAttribute("aria-pressed", String(hides(patch, place))));
    soon();
  }

  function invert() {
    set((patch) => !isHidden(patch));
  }

  function draw(share) {
    const places = patches().map((_, place) => place);
    for (let last = places.length - 1; last > 0; last--) {
      const other = Math.floor(Math.random() * (last + 1));
      [places[last], places[other]] = [places[other], places[last]];
    }
    const hidden = new Set(places.slice(0, Math.min(places.length - 1, Math.round(share * places.length))));
    set((_, place) => hidden.has(place));
  }

  function reset() {
    latest.stop();
    const has = image.value !== null;
    controls.hidden = views.hidden = board.hidden = !has;
    reconstructed.hidden = true;
    if (!has) {
      status.say(`Give an image${run.run.examples.reconstruct ? " or choose an example" : ""}, then mask parts of it.`);
      return;
    }
    back.src = image.value;
    side = Math.round(run.run.image_size / run.run.patch_size);
    grid.style.setProperty("--side", side);
    const patch = (place) =>
      el("button", {
        type: "button",
        tabindex: place ? -1 : 0,
        "aria-pressed": "false",
        "aria-label": `Patch in row ${Math.floor(place / side) + 1}, column ${(place % side) + 1}`,
        onclick: (event) => event.detail === 0 && mark(event.target, !isHidden(event.target)),
      });
    grid.replaceChildren(...Array.from({ length: side * side }, (_, place) => patch(place)));
    draw(SHARE);
  }

  function onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: side, ArrowUp: -side }[event.key];
    const all = patches();
    const next = all[all.indexOf(event.target) + (step ?? NaN)];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  function reconstruct() {
    soon.stop();
    if (image.value === null) return;
    const keep = patches().flatMap((patch, place) => (isHidden(patch) ? [] : [place]));
    const hidden = side * side - keep.length;
    if (!hidden || !keep.length || !text.value.trim()) {
      latest.stop();
      reconstructed.hidden = true;
      status.say(
        !text.value.trim()
          ? "Write a caption: the run reads it, too."
          : hidden
            ? "All patches are masked: keep at least one."
            : "No patch is masked: click or drag over patches.",
      );
      return;
    }
    status.wait("Reconstructing …");
    latest.run(
      (signal) => call(run.run.name, "reconstruct", { image: image.value, text: text.value.trim(), keep }, signal),
      (found) => {
        reconstructed.src = png(found.reconstructed);
        reconstructed.hidden = false;
        status.say(`${hidden} of ${side * side} patches reconstructed from the others and the caption.`);
      },
      (error) => status.fail(error),
    );
  }

  return { name: "reconstruct", title: "Complete the image", node, image, take: (file) => image.take(file) };
}
