// Requests to the server: JSON in, JSON out, with the token if the server needs one.

const KEY = "eve-token";
const TRIES = 3;
let asked = null;

/** Whether images need a request with the token, which `src` does not send. */
export const hasToken = () => sessionStorage.getItem(KEY) !== null;

/** Return the answer to a request, parsed or as a Blob; throw an Error with a message for people. */
export async function request(path, { body, signal, blob = false } = {}) {
  for (let tries = 1; ; tries++) {
    const token = sessionStorage.getItem(KEY);
    const headers = {};
    if (token !== null) headers.authorization = `Bearer ${token}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const method = body === undefined ? "GET" : "POST";
    let response;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer. Is it still running?");
    }
    if (response.ok) return blob ? response.blob() : response.json();
    if (response.status === 401) {
      await askForToken(token);
    } else if (response.status === 503 && tries < TRIES) {
      await pause(Number(response.headers.get("retry-after")) || 1, signal);
    } else {
      throw new Error(await reason(response));
    }
  }
}

/** Return the result of a call of a run. */
export async function call(run, name, body, signal) {
  const path = `/v1/runs/${encodeURIComponent(run)}/${encodeURIComponent(name)}`;
  return (await request(path, { body, signal })).result;
}

/** Return the address of an image of the index, or an object URL of it where only requests with the token get it. */
export async function imageAt(path, size, signal) {
  const address = `${path}?size=${size}`;
  return hasToken() ? URL.createObjectURL(await request(address, { blob: true, signal })) : address;
}

/** Ask for the token, once for all requests that wait for it. `used`: the one that was not accepted. */
async function askForToken(used) {
  if (sessionStorage.getItem(KEY) !== used) return; // another request has got one meanwhile
  asked ??= answer(used !== null).finally(() => (asked = null));
  sessionStorage.setItem(KEY, await asked);
}

function answer(wasWrong) {
  const dialog = document.getElementById("token");
  const input = dialog.querySelector("input");
  if (wasWrong)
    document.getElementById("token-note").textContent =
      "Wrong token. The server got its token at the start, as --token or EVE_TOKEN.";
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener(
      "close",
      () =>
        input.value
          ? resolve(input.value.trim())
          : reject(new Error("The server answers only with its token. Reload the page to enter it.")),
      { once: true },
    );
    dialog.addEventListener("cancel", () => (input.value = ""), { once: true });
  });
}

/** Return the server's error message. */
async function reason(response) {
  try {
    return (await response.json()).error || `The server answered ${response.status}.`;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("", "AbortError"));
    });
  });
}
