// Check: an expected list against a photo of the tray; what the operator then does goes on record.
import { ask, send } from "../api.js";
import { openCamera, photograph } from "../camera.js";
import { linesTable } from "../checked.js";
import { announce, element, notice } from "../dom.js";
import { listed, paint, picturesOf } from "../pills.js";
import { text } from "../strings.js";

export async function open(place) {
  const pictures = await picturesOf(ask);
  const list = element("textarea", { rows: 5, placeholder: text.expectedHint, spellcheck: false, maxLength: 200000 });
  const listFile = element("input", { type: "file", accept: ".csv,.json,.txt,text/*,application/json", class: "unseen", "aria-label": text.expectedFile });
  const photoFile = element("input", { type: "file", accept: "image/*", class: "unseen", "aria-label": text.checkPhoto });
  const video = element("video", { muted: true, playsInline: true, hidden: true });
  const image = element("img", { alt: text.trayPhoto, hidden: true });
  const marks = element("canvas", { "aria-hidden": "true" });
  const hint = element("div", { class: "hint" }, text.stageHint);
  const stage = element("div", { class: "stage" }, video, image, marks, hint);
  const camera = element("button", { type: "button" }, text.startCamera);
  const shoot = element("button", { type: "button", class: "main", hidden: true }, text.takeAndCheck);
  const fromFile = element("button", { type: "button", onclick: () => photoFile.click() }, text.checkPhoto);
  const outcome = element("div");
  place.append(
    element("h1", {}, text.checkTitle), element("p", { class: "quiet" }, text.checkHelp),
    element("div", { class: "split" },
      element("section", {}, stage, element("div", { class: "row" }, camera, shoot, fromFile, photoFile)),
      element("section", { class: "card side" },
        element("label", {}, text.expectedList, list),
        element("button", { type: "button", onclick: () => listFile.click() }, text.expectedFile), listFile,
        outcome)));

  let closeCamera = () => {};
  let left = false;

  async function check(photo) {
    outcome.replaceChildren(element("p", { class: "quiet" }, text.loading));
    try {
      const answer = await send("check", [["expected", list.value], ["image", photo]]);
      hint.hidden = true;
      video.hidden = true;
      image.hidden = false;
      image.src = URL.createObjectURL(photo);
      stage.style.aspectRatio = `${answer.look.width} / ${answer.look.height}`;
      paint(marks, answer.look.width, answer.look.height, answer.look.pills);
      const words = answer.ok ? text.trayOk : text.trayNotOk;
      outcome.replaceChildren(
        notice(answer.ok ? "good" : "bad", words, answer.full ? text.trayFull : ""),
        linesTable(answer.lines), decide(answer.number, answer.ok),
        element("details", { class: "all" }, element("summary", {}, text.allPills(answer.look.pills.length)),
          listed(answer.look.pills, pictures)));
      announce(words);
    } catch (failure) {
      outcome.replaceChildren(notice("bad", text.failed, failure.message, failure.remedy));
    }
  }

  // What the check says is the plain way on; the other is there for a person who knows better.
  function decide(number, ok) {
    const note = element("input", { maxLength: 2000 });
    const kept = element("div");
    const act = async (action) => {
      try {
        await send(`history/${number}/actions`, [["action", action], ["note", note.value]]);
        kept.replaceChildren(notice("good", text.actionKept(number)));
      } catch (failure) {
        kept.replaceChildren(notice("bad", text.failed, failure.message, failure.remedy));
      }
    };
    return element("div", {},
      element("label", {}, text.note, note),
      element("div", { class: "row" },
        element("button", { type: "button", class: ok ? "main" : "", onclick: () => act("confirmed") }, text.confirm),
        element("button", { type: "button", class: ok ? "danger" : "main danger", onclick: () => act("rejected") }, text.reject)),
      kept);
  }

  listFile.addEventListener("change", async () => {
    const [file] = listFile.files;
    if (file) list.value = await file.text();
    listFile.value = "";
  });
  photoFile.addEventListener("change", () => {
    const [photo] = photoFile.files;
    photoFile.value = "";
    if (photo) check(photo);
  });
  camera.addEventListener("click", async () => {
    camera.disabled = true; // while the browser asks
    try {
      closeCamera = await openCamera(video, 1920, () => left);
      video.hidden = false;
      image.hidden = true;
      hint.hidden = true;
      camera.hidden = true;
      shoot.hidden = false;
    } catch {
      if (left) return;
      camera.disabled = false;
      outcome.replaceChildren(notice("bad", text.failed, text.noCamera));
    }
  });
  shoot.addEventListener("click", async () => {
    if (video.hidden) {
      video.hidden = false;
      image.hidden = true;
      marks.width = 0;
      return;
    }
    check(await photograph(video, "tray.jpg", "image/jpeg", 0.95));
  });
  return () => { left = true; closeCamera(); };
}
