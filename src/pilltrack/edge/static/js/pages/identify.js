// Identify: the live picture or a photo, marks over it, and the pills beside it.
import { ask, send } from "../api.js";
import { watchDevice, watchOwn } from "../camera.js";
import { announce, element, notice } from "../dom.js";
import { listed, nameOf, paint, picturesOf } from "../pills.js";
import { text } from "../strings.js";

export async function open(place) {
  const status = await ask("status");
  const pictures = await picturesOf(ask);
  const video = element("video", { muted: true, playsInline: true, hidden: true });
  const image = element("img", { alt: "", hidden: true });
  const marks = element("canvas", { "aria-hidden": "true" });
  const hint = element("div", { class: "hint" }, text.stageHint);
  const stage = element("div", { class: "stage" }, video, image, marks, hint);
  const timing = element("p", { class: "quiet", "aria-live": "off" });
  const count = element("h2", {}, text.noPills);
  const list = element("div");
  const trouble = element("div");
  const file = element("input", { type: "file", accept: "image/*", class: "unseen", "aria-label": text.fromFile });
  const start = element("button", { class: "main", type: "button" }, text.startCamera);
  const deviceCamera = element("button", { type: "button", hidden: !status.camera }, text.deviceCamera);
  const fromFile = element("button", { type: "button", onclick: () => file.click() }, text.fromFile);
  const stop = element("button", { type: "button", hidden: true }, text.stop);
  place.append(
    element("h1", {}, text.identify),
    element("div", { class: "split" },
      element("section", {}, trouble, stage, element("div", { class: "row" }, start, deviceCamera, fromFile, stop, file), timing),
      element("section", { class: "card", "aria-label": text.identify }, count, list)));

  let end = () => {};
  let said = "";
  let kept = "";
  let turn = 0; // whose the camera is, once the browser may use it
  const times = [];

  function see(answer) {
    if (answer.error) { trouble.replaceChildren(notice("bad", text.failed, answer.error)); return; }
    hint.hidden = true;
    stage.style.aspectRatio = `${answer.width} / ${answer.height}`;
    paint(marks, answer.width, answer.height, answer.pills);
    count.textContent = answer.pills.length ? text.pillsInView(answer.pills.length) : text.noPills;
    // The list is made anew only when a decision changes, so that what is open stays open.
    const now = JSON.stringify(answer.pills.map((pill) => [pill.track, pill.decision, nameOf(pill)]));
    if (now !== kept) {
      kept = now;
      list.replaceChildren(listed(answer.pills, pictures));
    }
    const names = answer.pills.filter((pill) => pill.decision !== "checking").map(nameOf).join(", ");
    if (names !== said) { said = names; announce(names || text.noPills); }
    times.push(performance.now());
    while (times.length > 20) times.shift();
    const rate = times.length > 5 && answer.frame ? 1000 * (times.length - 1) / (times.at(-1) - times[0]) : 0;
    const { decode, locate, identify } = answer.ms;
    timing.textContent = text.timing(decode + locate + identify, locate, identify, rate);
  }

  function running(on) {
    for (const button of [start, fromFile]) button.hidden = on;
    deviceCamera.hidden = on || !status.camera;
    stop.hidden = !on;
    times.length = 0;
    trouble.replaceChildren();
  }

  function halt() {
    turn += 1;
    end();
    end = () => {};
    running(false);
  }

  const lost = () => {
    running(false);
    trouble.replaceChildren(notice("bad", text.liveLost));
  };

  start.addEventListener("click", async () => {
    const mine = turn += 1;
    running(true);
    image.hidden = true;
    video.hidden = false;
    try {
      end = await watchOwn(video, see, lost, () => mine !== turn);
    } catch {
      if (mine !== turn) return;
      running(false);
      video.hidden = true;
      trouble.replaceChildren(notice("bad", text.failed, text.noCamera));
    }
  });
  deviceCamera.addEventListener("click", () => {
    running(true);
    video.hidden = true;
    image.hidden = false;
    end = watchDevice(image, see, lost);
  });
  stop.addEventListener("click", halt);
  file.addEventListener("change", async () => {
    const [photo] = file.files;
    if (!photo) return;
    file.value = "";
    trouble.replaceChildren();
    try {
      const answer = await send("identify", [["image", photo]]);
      video.hidden = true;
      image.hidden = false;
      image.src = URL.createObjectURL(photo);
      see(answer);
    } catch (failure) {
      trouble.replaceChildren(notice("bad", text.failed, failure.message, failure.remedy));
    }
  });
  return halt;
}
