// Parts of all panels. What the server or a person says becomes text nodes and attributes here, never HTML.

const WHOLE = 2_000_000; // bytes of a file that is sent as it is, if its longer side has
const SIDE = 1024; // pixels at most: more than any run sees

/** Return an element. Of its properties, on… are handlers, --… are CSS variables, booleans are set or left out. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const counted = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/** Return a function that runs another one when it was not called for some milliseconds; its `stop` forgets a call. */
export function debounced(run, milliseconds) {
  let timer = 0;
  const soon = () => {
    soon.stop();
    timer = setTimeout(run, milliseconds);
  };
  soon.stop = () => clearTimeout(timer);
  return soon;
}

/** Replace what a node shows; the button that has the focus hands it to the one with its words. */
export function refill(node, ...children) {
  const held = node.contains(document.activeElement) ? document.activeElement.textContent : null;
  node.replaceChildren(...children);
  if (held !== null) [...node.querySelectorAll("button")].find((each) => each.textContent === held)?.focus();
}

/** Runs jobs: a new job stops the one before and drops its result. */
export class Latest {
  #controller = null;

  async run(job, show, fail) {
    this.stop();
    const own = (this.#controller = new AbortController());
    try {
      const result = await job(own.signal);
      if (this.#controller === own) show(result);
    } catch (error) {
      if (this.#controller === own && error.name !== "AbortError") fail(error);
    }
  }

  stop() {
    this.#controller?.abort();
    this.#controller = null;
  }
}

/** A line that screen readers read out when it changes. */
export class Status {
  node = el("p", { class: "status", role: "status", "aria-live": "polite" });

  say(text) {
    this.#set(text, "");
  }
  wait(text) {
    this.#set(text, "busy");
  }
  fail(error) {
    this.#set(error.message, "failed");
  }
  #set(text, state) {
    this.node.textContent = text;
    this.node.dataset.state = state;
  }
}

/** Return bars of shares in [0, 1], each { label, share, text }; those with `onclick` are buttons. */
export function bars(rows) {
  return el(
    "ol",
    { class: "bars" },
    ...rows.map(({ label, share, text, onclick, chosen }) => {
      const inner = [el("span", {}, label), el("b", {}, text ?? percent(share))];
      const length = { "--length": `${100 * Math.max(0, Math.min(1, share))}%` };
      const row = onclick
        ? el("button", { ...length, type: "button", onclick, "aria-pressed": String(Boolean(chosen)) }, ...inner)
        : el("div", length, ...inner);
      return el("li", {}, row);
    }),
  );
}

/** Return a labelled field around an input. */
export function field(label, input, note) {
  return el("label", { class: "field" }, el("span", {}, label), input, note ? el("small", {}, note) : null);
}

/** Return a choice among runs, with a line about the chosen one: { node, run }. */
export function runChoice(runs, onchange) {
  const about = el("p", { class: "note" });
  const of = () => runs.find((run) => run.name === select.value);
  const describe = () => (about.textContent = description(of(), runs.length === 1));
  const select = el(
    "select",
    { onchange: () => (describe(), onchange()) },
    ...runs.map((run) => el("option", { value: run.name }, titled(run))),
  );
  describe();
  return {
    node: el("div", { class: "run" }, runs.length > 1 ? field("Run", select) : null, about),
    get run() {
      return of();
    },
  };
}

const titled = (run) => `${run.name} (${run.task}, step ${run.step})`;

/** Say which run answers, and what it knows where that is built-in data. */
function description(run, isAlone) {
  const who = isAlone ? `The run ${titled(run)} answers.` : "";
  const knows = run.generated.length ? `It was trained on generated images only: ${run.generated.join(", ")}.` : "";
  return `${who} ${knows}`.trim();
}

/** Examples to click, bodies of a call: `show(bodies)` lists them, `use(body)` is called with the chosen one. */
export class Examples {
  node = el("div", { class: "samples", role: "group", "aria-label": "Examples" });

  constructor(use) {
    this.use = use;
  }

  show(bodies = [], images = ["image"], texts = ["text"]) {
    const words = (value) => (typeof value === "string" ? value : Object.keys(value).join(", "));
    const drawn = (body) => images.filter((key) => body[key]).map((key) => el("img", { src: png(body[key]), alt: "" }));
    const text = (body) => texts.filter((key) => body[key]).map((key) => words(body[key])).join(" · ");
    const button = (body) =>
      el(
        "button",
        { type: "button", title: text(body), onclick: () => this.use(body) },
        ...drawn(body),
        el("span", {}, text(body)),
      );
    this.node.hidden = !bodies.length;
    this.node.replaceChildren(...bodies.map(button));
  }
}

export const png = (data) => `data:image/png;base64,${data}`;

/** An image that a person chooses, drops or pastes; `value` is a data: URL, or null. */
export class ImageField {
  #id = `image-${Math.random().toString(36).slice(2)}`;
  #reading = null; // the file that is read, unless something was chosen since
  value = null;
  ready = Promise.resolve(); // when the last file is read

  constructor(label, onchange, { small = false } = {}) {
    this.label = label;
    this.onchange = onchange;
    this.image = el("img", { alt: "", hidden: true });
    this.input = el("input", {
      id: this.#id,
      type: "file",
      accept: "image/jpeg,image/png,image/webp,image/gif,image/avif",
      class: "hidden-input",
      onchange: () => this.input.files[0] && this.take(this.input.files[0]),
    });
    this.words = el("span", { class: "hint" }, small ? "Image" : "Choose, drop or paste an image");
    this.remove = el(
      "button",
      {
        type: "button",
        class: "remove",
        hidden: true,
        "aria-label": `Remove ${label.toLowerCase()}`,
        onclick: () => this.set(null),
      },
      "×",
    );
    this.problem = el("small", { class: "problem", role: "alert" });
    const zone = el(
      "label",
      { class: "zone", for: this.#id, title: "Choose, drop or paste an image" },
      el("span", { class: "sr" }, label),
      this.image,
      this.words,
    );
    this.node = el(
      "div",
      { class: small ? "image small" : "image", "data-label": label },
      small ? null : el("span", { class: "label" }, label),
      this.input,
      zone,
      this.remove,
      this.problem,
    );
  }

  /** Take a file or a Blob. */
  take(file) {
    return (this.ready = this.#read(file));
  }

  async #read(file) {
    this.problem.textContent = "";
    this.#reading = file;
    const value = await dataUrl(file).catch(() => null);
    if (this.#reading !== file) return;
    if (value !== null) this.set(value);
    else
      this.problem.textContent = `This browser cannot read ${file.name || "that"} as an image. Give a PNG, JPEG, WebP or GIF.`;
  }

  /** Show a data: URL, or nothing. isExample: other panels do not take it over. */
  set(value, isExample = false) {
    this.#reading = null;
    this.value = value;
    this.input.value = "";
    this.problem.textContent = "";
    this.image.hidden = this.remove.hidden = value === null;
    this.words.hidden = value !== null;
    if (value === null) this.image.removeAttribute("src");
    else this.image.src = value;
    this.image.alt = value === null ? "" : this.label;
    this.onchange(value, isExample);
  }
}

/** Return an image's bytes as a data: URL, reduced if there are many. Rejects files that are no images. */
export async function dataUrl(file) {
  const bitmap = await createImageBitmap(file);
  if (file.size <= WHOLE && Math.max(bitmap.width, bitmap.height) <= SIDE) return read(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // under transparency, as where images are decoded; JPEG would make it black
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
