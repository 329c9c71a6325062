// Panels of calls: the server describes the form; a result is shown as bars, with the heatmap of `explain` below.

import { call } from "./api.js";
import { bars, el, Examples, field, Latest, percent, png, ImageField, refill, runChoice, Status } from "./parts.js";

const MASK = "[MASK]";
const shares = (rows, name = "label", value = "probability") =>
  rows.map((row) => ({ label: row[name], share: row[value] }));
const guessed = (rows, mask) => rows.map(({ text, probability }) => ({ label: mask + text, share: probability }));
const yesNo = (probability, yes, no) => [
  { label: yes, share: probability },
  { label: no, share: 1 - probability },
];

/** By call: the bars of a result, a sentence, a note, a placeholder, and what `explain` takes. Other calls show their JSON. */
const VIEWS = {
  answer: {
    rows: (result) => shares(result, "answer"),
    note: "Each answer has a probability of its own, so the shares need not add up to 100 %.",
    explain: ({ image, question }) => ({ image, text: question }),
  },
  verify: {
    rows: ({ probability }) => yesNo(probability, "true", "false"),
    explain: ({ left, right, statement }) => ({ image: left, right, text: statement }),
  },
  match: {
    rows: (result) => yesNo(result, "they belong together", "they do not"),
    hint: (sample) => sample,
    explain: ({ image, text }) => ({ image, text }),
  },
  same: { rows: ({ probability }) => yesNo(probability, "the same", "not the same") },
  classify: {
    rows: (result) => shares(result),
    explain: ({ image, text }) => image && { image, text: text ?? "" },
  },
  zero_shot: { rows: scores },
  fill_mask: {
    rows: ({ guesses }) => guesses.flatMap((each, number) => guessed(each, guesses.length > 1 ? `${number + 1}: ` : "")),
    sentence: ({ text }) => text,
    hint: (sample) => sample.replace(/\S+$/, "[MASK]"),
    explain: ({ image }, { text, guesses }) => ({ image, text, word: guesses[0][0].text }),
  },
};

/** Return a panel for each form of the runs. chosen(image): called with each image. sample: a caption, or "". */
export function forms(runs, chosen, sample) {
  const found = Object.assign({}, ...runs.map((run) => run.forms));
  const names = new Set([...Object.keys(VIEWS).filter((name) => found[name]), ...Object.keys(found)]);
  return [...names].map((name) =>
    formPanel(name, found[name], VIEWS[name] ?? {}, runs.filter((run) => run.calls.includes(name)), chosen, sample),
  );
}

function formPanel(name, form, view, runs, chosen, sample) {
  const latest = new Latest();
  const status = new Status();
  const explanation = new Explanation();
  const found = el("div", { class: "answers" });
  const run = runChoice(runs, () => (clear(), list()));
  const examples = new Examples(use);
  const inputs = form.fields.map(({ name: key, label, kind, required, example }) => {
    if (kind === "image") {
      const image = new ImageField(label, (value, isExample) => (isExample || chosen(value), clear()));
      const set = (data) => image.set(data ? png(data) : null, true);
      return { key, label, required, image, node: image.node, value: () => image.value, set };
    }
    const isLines = kind === "prompts";
    const hint = (sample && view.hint?.(sample)) || example;
    const shown = isLines ? hint : (run.run.examples[name]?.[0][key] ?? hint);
    const input = isLines
      ? el("textarea", { name: key, rows: 5, placeholder: shown })
      : el("input", { type: "text", name: key, placeholder: shown, autocomplete: "off" });
    const words = name === "fill_mask" ? new MaskedWords(input, () => ask()) : null;
    const set = (text) => ((input.value = isLines ? lines(text) : (text ?? "")), words?.draw());
    const node = field(label, input, isLines ? "One class a line, as name: prompt; prompt" : undefined);
    const value = () => (input.value.trim() && isLines ? classes(input.value) : input.value.trim());
    return { key, label, required, node, value, set, words };
  });
  const images = inputs.filter(({ image }) => image);
  const body = el(
    "form",
    { onsubmit: (event) => (event.preventDefault(), ask()) },
    el("div", { class: "images" }, ...images.map(({ node }) => node)),
    ...inputs.filter(({ image }) => !image).flatMap(({ node, words }) => (words ? [node, words.node] : [node])),
    el("p", { class: "buttons" }, el("button", { class: "main" }, form.title)),
    run.node,
  );
  const node = el(
    "section",
    { class: "panel two" },
    examples.node,
    body,
    el("div", { class: "result" }, status.node, found, explanation.node),
  );
  clear();
  list();

  function list() {
    const ofKind = (isImage) => inputs.filter(({ image }) => Boolean(image) === isImage).map(({ key }) => key);
    examples.show(run.run.examples[name], ofKind(true), ofKind(false));
  }

  function use(example) {
    for (const { key, set } of inputs) set(example[key]);
    ask();
  }

  function clear() {
    latest.stop();
    found.replaceChildren();
    explanation.clear();
    const missing = images.filter(({ image }) => !image.value);
    const orExample = run.run.examples[name] ? " Or choose an example above." : "";
    status.say(missing.length ? `Missing: ${missing.map(({ label }) => label.toLowerCase()).join(", ")}.${orExample}` : "");
  }

  async function ask() {
    await Promise.all(images.map(({ image }) => image.ready));
    const values = Object.fromEntries(inputs.filter((each) => each.value()).map((each) => [each.key, each.value()]));
    const missing = inputs.filter(({ key, required }) => required && !values[key]).map(({ label }) => label);
    found.replaceChildren();
    explanation.clear();
    if (missing.length) {
      status.fail(new Error(`Still missing: ${missing.join(", ").toLowerCase()}.`));
      return;
    }
    status.wait("Thinking …");
    latest.run(
      (signal) => call(run.run.name, name, values, signal),
      (result) => show(result, values),
      status.fail.bind(status),
    );
  }

  function show(result, values) {
    if (!view.rows) {
      status.say("");
      found.replaceChildren(el("p", { class: "verdict" }, JSON.stringify(result)));
      return;
    }
    const rows = view.rows(result);
    const canExplain = view.explain && run.run.calls.includes("explain") && view.explain(values, result);
    const byAnswer = name === "answer" || name === "classify";
    const draw = (chosen) => {
      const sentence = view.sentence?.(result) ?? rows.reduce((best, row) => (row.share > best.share ? row : best)).label;
      const buttons = rows.map((row, place) => ({
        ...row,
        chosen: place === chosen,
        onclick: byAnswer && canExplain ? () => (draw(place), explanation.show(run.run, { ...canExplain, answer: row.label })) : null,
      }));
      const note = view.note && el("p", { class: "note" }, view.note);
      refill(found, el("p", { class: "verdict" }, sentence), bars(buttons), note || "");
    };
    draw(canExplain && byAnswer ? 0 : -1);
    status.say(byAnswer && canExplain ? "Choose an answer to see its evidence." : "");
    if (canExplain) explanation.show(run.run, canExplain);
  }

  const take = (file, target) => {
    const over =
      images.find(({ node }) => node.contains(target)) ?? images.find(({ image }) => !image.value) ?? images[0];
    return over?.image.take(file);
  };
  return {
    name: name.replace("answer", "ask").replace("_", "-"),
    title: form.title,
    node,
    image: images[0]?.image ?? null,
    take,
  };
}

/** The words of a text field, as buttons that mask them or show them again; `changed` is called after a click. */
class MaskedWords {
  node = el("div", { class: "chips words", role: "group", "aria-label": "Words to mask" });
  #known = []; // the words, also those behind masks

  constructor(input, changed) {
    this.input = input;
    this.changed = changed;
    input.addEventListener("input", () => this.draw());
  }

  draw() {
    const words = this.input.value.split(/\s+/).filter(Boolean);
    const isSame = words.length === this.#known.length && words.every((word, at) => [MASK, this.#known[at]].includes(word));
    if (!isSame) this.#known = words;
    const flip = (at) => () => {
      this.input.value = words.map((word, each) => (each !== at ? word : word === MASK ? this.#known[at] : MASK)).join(" ");
      this.draw();
      this.changed();
    };
    const chip = (word, at) =>
      el("button", { type: "button", class: "chip", "aria-pressed": String(word === MASK), onclick: flip(at) }, this.#known[at]);
    refill(this.node, words.length ? el("span", { class: "label" }, "Mask") : "", ...words.map(chip));
  }
}

/** The heatmap of a result: the images under their heat, which fades, and the words of the text to choose from. */
class Explanation {
  node = el("div", { class: "look" });
  #latest = new Latest();
  #status = new Status();

  clear() {
    this.#latest.stop();
    this.node.replaceChildren();
  }

  show(run, body) {
    this.#status.wait("Computing the heatmap …");
    if (!this.node.childElementCount) this.node.replaceChildren(this.#status.node);
    this.#latest.run(
      (signal) => call(run.name, "explain", body, signal),
      (found) => this.#draw(run, body, found),
      (error) => this.#status.fail(error),
    );
  }

  #draw(run, body, found) {
    const originals = [body.image, body.right].filter(Boolean);
    const heats = found.images.map((data, place) =>
      el("img", {
        class: "heat",
        src: png(data),
        alt: `Heatmap${originals.length > 1 ? ` of the ${place ? "right" : "left"} image` : ""}: red is strongest`,
      }),
    );
    const slider = el("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.05,
      value: 1,
      oninput: () => heats.forEach((heat) => (heat.style.opacity = slider.value)),
    });
    const words = [...new Set(body.text.match(/[\p{L}\p{N}]+/gu) ?? [])];
    const whole = found.word === null || body.word === undefined;
    const chip = (label, word) =>
      el(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": String(word === undefined ? whole : !whole && found.word === word),
          onclick: () => this.show(run, { ...body, word }),
        },
        label,
      );
    const canBeWhole = !run.calls.includes("fill_mask"); // a pre-trained run explains a masked word
    this.#status.say(`Evidence for ${found.score}, ${percent(found.probability)}`);
    refill(
      this.node,
      el("h2", {}, "Evidence in the image"),
      el(
        "div",
        { class: "stacks" },
        ...heats.map((heat, place) => el("div", { class: "stack" }, el("img", { src: originals[place], alt: "" }), heat)),
      ),
      el("label", { class: "fade" }, el("span", {}, "Heat"), slider),
      words.length
        ? el(
            "p",
            { class: "chips" },
            el("span", { class: "label" }, "Attention of"),
            canBeWhole ? chip("the whole text", undefined) : null,
            ...words.map((word) => chip(word, word)),
          )
        : "",
      this.#status.node,
    );
  }
}

/** Return bars of scores, which are no probabilities: their length is relative to the best. */
function scores(result) {
  const values = result.map((row) => row.score);
  const [low, high] = [Math.min(...values, 0), Math.max(...values)];
  return result.map(({ label, score }) => ({ label, share: (score - low) / (high - low || 1), text: score.toFixed(3) }));
}

/** Return the lines of prompts, which `classes` reads. */
function lines(prompts = {}) {
  return Object.entries(prompts)
    .map(([name, texts]) => `${name}: ${texts.join("; ")}`)
    .join("\n");
}

/** Return the prompts of classes by name, from lines `name: prompt; prompt`. */
function classes(text) {
  const lines = text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  const found = Object.create(null); // a class may be called anything
  for (const line of lines) {
    const [name, prompts] = line.includes(":")
      ? [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1)]
      : [line, line];
    const all = (found[name.trim()] ??= []); // several lines may name one class
    all.push(...prompts.split(";").map((each) => each.trim()).filter(Boolean));
  }
  return found;
}
