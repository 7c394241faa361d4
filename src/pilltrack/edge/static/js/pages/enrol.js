// Enrol: a name, some photos from the camera or from files, and what is wrong with them if anything is.
import { send } from "../api.js";
import { openCamera, photograph } from "../camera.js";
import { announce, element, notice } from "../dom.js";
import { thumb } from "../pills.js";
import { text } from "../strings.js";

export async function open(place) {
  const photos = [];
  const name = element("input", { name: "name", required: true, maxLength: 200, autocomplete: "off" });
  const side = element("select", { name: "side" },
    Object.entries(text.sides).map(([value, words]) => element("option", { value }, words)));
  const file = element("input", { type: "file", accept: "image/*", multiple: true, class: "unseen", "aria-label": text.choosePhotos });
  const choose = element("button", { type: "button", onclick: () => file.click() }, text.choosePhotos);
  const video = element("video", { muted: true, playsInline: true });
  const hint = element("div", { class: "hint" }, text.enrolHelp);
  const camera = element("button", { type: "button" }, text.startCamera);
  const shoot = element("button", { type: "button", class: "main", hidden: true }, text.takePhoto);
  const shown = element("div", { class: "thumbs" });
  const chosen = element("p", { class: "quiet" }, text.photosChosen(0));
  const submit = element("button", { type: "submit", class: "main", disabled: true }, text.enrolNow);
  const outcome = element("div");
  const form = element("form", { class: "card" },
    element("label", {}, text.pillName, name), element("label", {}, text.side, side),
    element("div", { class: "row" }, choose, file), chosen, shown, submit, outcome);
  place.append(
    element("h1", {}, text.enrolTitle), element("p", { class: "quiet" }, text.enrolHelp),
    element("div", { class: "split" },
      element("section", {}, element("div", { class: "stage" }, video, hint), element("div", { class: "row" }, camera, shoot)),
      form));

  let closeCamera = () => {};

  function show() {
    shown.replaceChildren(...photos.map((photo, index) => {
      const address = URL.createObjectURL(photo);
      const picture = thumb(address, photo.name ?? "");
      picture.addEventListener("load", () => URL.revokeObjectURL(address));
      return element("button", { type: "button", style: "padding:2px", "aria-label": text.removePhoto(index + 1),
        title: text.removePhoto(index + 1), onclick: () => { photos.splice(index, 1); show(); } }, picture);
    }));
    chosen.textContent = text.photosChosen(photos.length);
    submit.disabled = !photos.length;
  }

  file.addEventListener("change", () => { photos.push(...file.files); file.value = ""; show(); });
  camera.addEventListener("click", async () => {
    try {
      closeCamera = await openCamera(video, 1920);
      hint.hidden = true;
      camera.hidden = true;
      shoot.hidden = false;
    } catch {
      outcome.replaceChildren(notice("bad", text.failed, text.noCamera));
    }
  });
  shoot.addEventListener("click", async () => {
    photos.push(await photograph(video, `photo-${Date.now()}.png`, "image/png"));
    show();
    announce(text.photosChosen(photos.length));
  });

  async function enrol() {
    submit.disabled = true;
    outcome.replaceChildren();
    try {
      const fields = [["name", name.value.trim()], ["side", side.value], ...photos.map((photo) => ["photos", photo])];
      const answer = await send("gallery", fields);
      outcome.replaceChildren(notice("good", text.enrolled(answer.pill, answer.references)));
      photos.length = 0;
      show();
    } catch (failure) {
      outcome.replaceChildren(notice("bad", text.refused, failure.message, failure.remedy));
      submit.disabled = false;
    }
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); enrol(); });
  return () => closeCamera();
}
