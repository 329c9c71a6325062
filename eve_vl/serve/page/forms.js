// Panels of one shape: images and texts in, bars out, and where the run looked.

import { call } from "./api.js";
import { bars, el, field, Latest, percent, ImageField, refill, runChoice, Status } from "./parts.js";

const shares = (rows, name = "label", value = "probability") =>
  rows.map((row) => ({ label: row[name], share: row[value] }));
const guessed = (rows, mask) => rows.map(({ text, probability }) => ({ label: mask + text, share: probability }));
const yesNo = (probability, yes, no) => [
  { label: yes, share: probability },
  { label: no, share: 1 - probability },
];
const image = ["image", "Image"];
const sides = [
  ["left", "Left image"],
  ["right", "Right image"],
];

/** By the call of a run: its images, its texts (name, label, example), the bars of a result, and what `look` takes. */
const FORMS = {
  answer: {
    title: "Ask",
    images: [image],
    texts: [["question", "Question", "what color is the circle"]],
    rows: (result) => shares(result, "answer"),
    note: "Each answer is judged by itself, so the shares need not add up to 100 %.",
    look: ({ image, question }) => ({ image, text: question }),
  },
  verify: {
    title: "Verify",
    images: sides,
    texts: [["statement", "Statement about the two", "both pictures contain a red circle"]],
    rows: ({ probability }) => yesNo(probability, "true", "false"),
    look: ({ left, right, statement }) => ({ image: left, right, text: statement }),
  },
  match: {
    title: "Match",
    images: [image],
    texts: [["text", "Text", "a red circle"]],
    rows: (result) => yesNo(result, "they belong together", "they do not"),
    look: ({ image, text }) => ({ image, text }),
  },
  same: {
    title: "Same item",
    images: sides,
    texts: [
      ["left_text", "Text of the left one", ""],
      ["right_text", "Text of the right one", ""],
    ],
    rows: ({ probability }) => yesNo(probability, "the same", "not the same"),
  },
  classify: {
    title: "Classify",
    images: [image],
    texts: [["text", "Text, if the run reads one", ""]],
    optional: true,
    rows: (result) => shares(result),
    look: ({ image, text }) => image && { image, text: text ?? "" },
  },
  zero_shot: {
    title: "Zero-shot",
    images: [image],
    texts: [
      [
        "prompts",
        "Classes, one a line; after a colon what is said of it",
        "circle: a red circle; a blue circle\nsquare: a red square; a blue square",
      ],
    ],
    lines: true,
    rows: scores,
    read: ({ prompts }) => ({ prompts: classes(prompts) }),
  },
  fill_mask: {
    title: "Fill in",
    images: [image],
    texts: [["text", "Text with one or more [MASK]", "a [MASK] circle"]],
    rows: ({ guesses }) => guesses.flatMap((each, number) => guessed(each, guesses.length > 1 ? `${number + 1}: ` : "")),
    sentence: ({ text }) => text,
    look: ({ image }, { text, guesses }) => ({ image, text, word: guesses[0][0].text }),
  },
};

/** Return a panel for each call that some run offers. of(call): those runs. chosen(image): is told of each. */
export function forms(of, chosen) {
  return Object.entries(FORMS)
    .filter(([name]) => of(name).length)
    .map(([name, form]) => formPanel(name, form, of(name), chosen));
}

function formPanel(name, form, runs, chosen) {
  const latest = new Latest();
  const status = new Status();
  const look = new Look();
  const found = el("div", { class: "answers" });
  const run = runChoice(runs, clear);
  const images = form.images.map(([key, label]) => ({
    key,
    field: new ImageField(label, (value) => (chosen(value), clear())),
  }));
  const texts = form.texts.map(([key, label, placeholder]) => {
    const input = form.lines
      ? el("textarea", { name: key, rows: 5, placeholder })
      : el("input", { type: "text", name: key, placeholder, autocomplete: "off" });
    return { key, label, input };
  });
  const body = el(
    "form",
    { onsubmit: (event) => (event.preventDefault(), ask()) },
    el("div", { class: "images" }, ...images.map((each) => each.field.node)),
    ...texts.map(({ label, input }) => field(label, input)),
    run.node,
    el("p", { class: "buttons" }, el("button", { class: "main" }, form.title)),
  );
  const node = el("section", { class: "panel two" }, body, el("div", { class: "result" }, status.node, found, look.node));
  clear();

  function clear() {
    latest.stop();
    found.replaceChildren();
    look.clear();
    status.say(
      images.every(({ field }) => field.value)
        ? ""
        : `Give ${images.length > 1 ? "two images" : "an image"}${form.optional ? "" : " and a text"}.`,
    );
  }

  function given() {
    const values = Object.fromEntries(
      images.filter(({ field }) => field.value).map(({ key, field }) => [key, field.value]),
    );
    for (const { key, input } of texts) if (input.value.trim()) values[key] = input.value.trim();
    const missing = form.optional
      ? []
      : [
          ...images.filter(({ field }) => !field.value).map(({ field }) => field.label),
          ...texts.filter(({ key }) => !values[key]).map(({ label }) => label.split(",")[0]),
        ];
    return [values, missing];
  }

  async function ask() {
    await Promise.all(images.map(({ field }) => field.ready));
    const [values, missing] = given();
    found.replaceChildren();
    look.clear();
    if (missing.length) {
      status.fail(new Error(`Still missing: ${missing.join(", ").toLowerCase()}.`));
      return;
    }
    status.wait("Thinking …");
    latest.run(
      (signal) => call(run.run.name, name, { ...values, ...form.read?.(values) }, signal),
      (result) => show(result, values),
      status.fail.bind(status),
    );
  }

  function show(result, values) {
    const rows = form.rows(result);
    const canLook = form.look && run.run.calls.includes("explain") && form.look(values, result);
    const byAnswer = name === "answer" || name === "classify";
    const draw = (chosen) => {
      const sentence = form.sentence?.(result) ?? rows.reduce((best, row) => (row.share > best.share ? row : best)).label;
      const buttons = rows.map((row, place) => ({
        ...row,
        chosen: place === chosen,
        onclick: byAnswer && canLook ? () => (draw(place), look.show(run.run, { ...canLook, answer: row.label })) : null,
      }));
      const note = form.note && el("p", { class: "note" }, form.note);
      refill(found, el("p", { class: "verdict" }, sentence), bars(buttons), note || "");
    };
    draw(canLook && byAnswer ? 0 : -1);
    status.say(byAnswer && canLook ? "Choose an answer to see where it comes from." : "");
    if (canLook) look.show(run.run, canLook);
  }

  const take = (file, target) => {
    const over =
      images.find(({ field }) => field.node.contains(target)) ??
      images.find(({ field }) => !field.value) ??
      images[0];
    return over.field.take(file);
  };
  return {
    name: name.replace("answer", "ask").replace("_", "-"),
    title: form.title,
    node,
    image: images[0].field,
    take,
  };
}

/** Where a run looked: the images under their heat, which fades, and the words of the text to ask for one by one. */
class Look {
  node = el("div", { class: "look" });
  #latest = new Latest();
  #status = new Status();

  clear() {
    this.#latest.stop();
    this.node.replaceChildren();
  }

  show(run, body) {
    this.#status.wait("Looking where it comes from …");
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
        alt: `Where it looked${originals.length > 1 ? ` in the ${place ? "right" : "left"} image` : ""}: red is hottest`,
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
    const canBeWhole = !run.calls.includes("fill_mask"); // a pre-trained run looks for a hidden word
    this.#status.say(`What speaks for ${found.score}, ${percent(found.probability)}`);
    refill(
      this.node,
      el("h2", {}, "Where it looked"),
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
            el("span", { class: "label" }, "Asked by"),
            canBeWhole ? chip("the whole text", undefined) : null,
            ...words.map((word) => chip(word, word)),
          )
        : "",
      this.#status.node,
    );
  }
}

export const png = (data) => `data:image/png;base64,${data}`;

/** Return bars of scores, which are no probabilities: as long as they are near the best. */
function scores(result) {
  const values = result.map((row) => row.score);
  const [low, high] = [Math.min(...values, 0), Math.max(...values)];
  return result.map(({ label, score }) => ({ label, share: (score - low) / (high - low || 1), text: score.toFixed(3) }));
}

/** Return classes by name, each with what is said of it, from lines `name: text; text`. */
function classes(text) {
  const lines = text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
  const found = Object.create(null); // a class may be called anything
  for (const line of lines) {
    const [name, said] = line.includes(":")
      ? [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1)]
      : [line, line];
    const all = (found[name.trim()] ??= []); // several lines may tell of one class
    all.push(...said.split(";").map((each) => each.trim()).filter(Boolean));
  }
  return found;
}
