// The panel that shows which expert each patch and each token goes to, block by block.

import { call } from "./api.js";
import { debounced, el, Examples, field, Latest, percent, png, ImageField, runChoice, Status } from "./parts.js";

const PAUSE = 250; // milliseconds after the last key

export function expertsPanel(runs, chosen, sample) {
  const latest = new Latest();
  const status = new Status();
  const soon = debounced(ask, PAUSE);
  const run = runChoice(runs, () => (ask(), list()));
  const image = new ImageField("Image", (value, isExample) => (isExample || chosen(value), ask()));
  const text = el("textarea", { name: "text", rows: 2, placeholder: sample || "What the image shows", oninput: soon });
  const examples = new Examples((example) => {
    text.value = example.text ?? "";
    isFromExample = true;
    image.set(png(example.image), true);
  });
  const list = () => examples.show(run.run.examples.experts);
  const blocks = el("div", { class: "experts" });
  const form = el(
    "form",
    { onsubmit: (event) => (event.preventDefault(), ask()) },
    image.node,
    field("Text", text, "An image, a text or both: routing depends on what tokens attend to."),
    run.node,
  );
  const node = el("section", { class: "panel two" }, examples.node, form, el("div", { class: "result" }, status.node, blocks));
  let isFromExample = false; // then a phone scrolls to the result
  ask();
  list();

  function ask() {
    soon.stop();
    const body = {};
    if (image.value !== null) body.image = image.value;
    if (text.value.trim()) body.text = text.value.trim();
    if (!Object.keys(body).length) {
      latest.stop();
      blocks.replaceChildren();
      status.say(`Give an image, a text or both${run.run.examples.experts ? ", or choose an example" : ""}.`);
      return;
    }
    status.wait("Asking the routers …");
    latest.run(
      (signal) => call(run.run.name, "experts", body, signal),
      (found) => show(found, body),
      (error) => {
        blocks.replaceChildren();
        status.fail(error);
      },
    );
  }

  function show(found, body) {
    const K = found.blocks[0].experts[0].length;
    const E = found.blocks[0].colors.length;
    const how = "colours and numbers are those of the first. Point at an expert to see only its tokens.";
    status.say(`Each token goes to ${K} of ${E} experts; ${how}`);
    blocks.replaceChildren(...found.blocks.map((block) => drawn(block, found, body.image)));
    if (isFromExample) blocks.firstChild.scrollIntoView({ block: "nearest" });
    isFromExample = false;
  }

  function drawn(block, { grid, words }, image) {
    const first = block.experts.map((experts) => experts[0]);
    const [rows, columns] = grid;
    const numPatches = rows * columns;
    const numImage = numPatches ? numPatches + 1 : 0;
    const card = el("article", { class: "card expert-map", "aria-label": `Block ${block.block}` });
    const token = (tag, place, label) =>
      el(
        tag,
        { class: "token", "--expert": block.colors[first[place]], "data-expert": first[place], title: title(block, place, label) },
        tag === "span" ? String(first[place]) : label,
        tag === "span" ? null : el("b", {}, String(first[place])),
      );
    const tiles = Array.from({ length: numPatches }, (_, patch) =>
      token("span", patch + 1, `patch ${Math.floor(patch / columns) + 1}, ${(patch % columns) + 1}`),
    );
    const experts = [...new Set(first)].sort((a, b) => a - b);
    const count = (expert, tokens) => tokens.filter((each) => each === expert).length / tokens.length;
    const parts = [
      ["image", first.slice(1, numImage)],
      ["text", first.slice(numImage)],
    ].filter(([, tokens]) => tokens.length);
    const only = (expert) =>
      card
        .querySelectorAll(".token")
        .forEach((each) => each.classList.toggle("dim", expert !== null && each.dataset.expert !== String(expert)));
    const legend = experts.map((expert) => {
      const shares = parts
        .map(([name, tokens]) => `${percent(count(expert, tokens)).replace(".0", "")} of the ${name}`)
        .join(", ");
      return el(
        "li",
        {},
        el(
          "button",
          {
            type: "button",
            class: "chip",
            "--expert": block.colors[expert],
            onpointerenter: () => only(expert),
            onpointerleave: () => only(null),
            onfocus: () => only(expert),
            onblur: () => only(null),
          },
          el("i", {}),
          `expert ${expert}`,
        ),
        el("small", {}, shares),
      );
    });
    card.append(
      el("h2", {}, `Block ${block.block}`),
      el(
        "div",
        { class: "expert-grid" },
        numPatches
          ? el(
              "div",
              { class: "board" },
              el("img", { src: image, alt: "" }),
              el("div", { class: "patches shown", "--side": columns }, ...tiles),
            )
          : "",
        el(
          "div",
          {},
          words.length
            ? el("p", { class: "tokens" }, ...words.map((word, place) => token("mark", numImage + place, word)))
            : "",
          el("ul", { class: "experts" }, ...legend),
        ),
      ),
    );
    return card;
  }

  return { name: "experts", title: "Experts", node, image, take: (file) => image.take(file) };
}

function title({ experts, gates }, place, label) {
  return `${label}: ${experts[place].map((expert, rank) => `expert ${expert} (${percent(gates[place][rank])})`).join(", ")}`;
}
