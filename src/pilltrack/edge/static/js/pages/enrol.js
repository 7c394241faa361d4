// Enrol: a name, some photos from the camera or from files, and what is wrong with them if anything is.
import { send } from "../api.js";
import { openCamera, photograph } from "../camera.js";
import { announce, element, notice } from "../dom.js";
import { faultList, pair, sideChoice } from "../faults.js";
import { text } from "../strings.js";

export async function open(place) {
  let photos = []; // { file, address, side, faults }
  const name = element("input", { name: "name", required: true, maxLength: 200, autocomplete: "off" });
  const side = sideChoice("");
  const file = element("input", { type: "file", accept: "image/*", multiple: true, class: "unseen", "aria-label": text.choosePhotos });
  const choose = element("button", { type: "button", onclick: () => file.click() }, text.choosePhotos);
  const video = element("video", { muted: true, playsInline: true });
  const hint = element("div", { class: "hint" }, text.enrolHelp);
  const camera = element("button", { type: "button" }, text.startCamera);
  const shoot = element("button", { type: "button", class: "main", hidden: true }, text.takePhoto);
  const shown = element("ul", { class: "photos", "aria-label": text.photos });
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
  let left = false;

  function add(files) {
    photos.push(...files.map((one) => ({ file: one, address: URL.createObjectURL(one), side: side.value, faults: [] })));
    show();
  }

  function drop(dropped) {
    for (const photo of dropped) URL.revokeObjectURL(photo.address);
    photos = photos.filter((photo) => !dropped.includes(photo));
    show();
  }

  // A reason is for what was seen: with another name, other photos, or sides, nothing that was said of all of them counts.
  function show() {
    outcome.replaceChildren();
    shown.replaceChildren(...photos.map((photo, index) => {
      const number = index + 1;
      const shows = sideChoice(photo.side, { "aria-label": text.sideOf(number) });
      shows.addEventListener("change", () => { photo.side = shows.value; outcome.replaceChildren(); });
      return element("li", { class: photo.faults.length ? "faulty" : "" },
        element("img", { class: "thumb", src: photo.address, alt: text.photoNumber(number) }),
        element("div", {},
          element("div", { class: "row" }, shows,
            element("button", { type: "button", "aria-label": text.removePhoto(number), onclick: () => drop([photo]) }, text.remove)),
          faultList(photo.faults)));
    }));
    chosen.textContent = text.photosChosen(photos.length);
    submit.disabled = !photos.length;
  }

  // What is wrong: at each photo, and below for all of them; then, where it helps, a reason to go on.
  function refuse({ faults, boxes, can_override: canOverride }, sent) {
    sent.forEach((photo, index) => { photo.faults = faults.filter((fault) => fault.photo === index); });
    show();
    const collision = faults.find((fault) => fault.other);
    const unchanged = sent.length === photos.length && sent.every((photo, index) => photo === photos[index]);
    outcome.replaceChildren(
      notice("bad", text.refused, text.faultsFound(faults.length), canOverride ? "" : text.noOverride),
      faultList(faults.filter((fault) => fault.photo === null)) ?? "",
      collision ? pair(sent[collision.photo].address, boxes[collision.photo], collision) : "",
      canOverride && unchanged ? override() : "");
    announce(text.faultsFound(faults.length));
    form.querySelector(".faults")?.scrollIntoView({ block: "nearest" });
  }

  function override() {
    const missing = element("p", { class: "mistake", id: "no-reason", role: "alert" });
    const reason = element("textarea", { rows: 2, maxLength: 2000, "aria-describedby": "no-reason" });
    const go = () => {
      missing.textContent = reason.value.trim() ? "" : text.reasonNeeded;
      reason.setAttribute("aria-invalid", String(!reason.value.trim()));
      if (reason.value.trim()) enrol(reason.value);
      else reason.focus();
    };
    return element("div", {},
      element("label", {}, text.overrideReason, reason), missing,
      element("p", { class: "quiet" }, text.overrideKept),
      element("button", { type: "button", class: "danger", onclick: go }, text.override));
  }

  name.addEventListener("input", () => outcome.replaceChildren());
  file.addEventListener("change", () => { add([...file.files]); file.value = ""; });
  camera.addEventListener("click", async () => {
    camera.disabled = true; // while the browser asks
    try {
      closeCamera = await openCamera(video, 1920, () => left);
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
    add([await photograph(video, `photo-${Date.now()}.png`, "image/png")]);
    announce(text.photosChosen(photos.length));
  });

  async function enrol(reason) {
    submit.disabled = true;
    outcome.replaceChildren(element("p", { class: "quiet" }, text.loading));
    const sent = [...photos];
    try {
      const fields = [["name", name.value.trim()], ["override_reason", reason],
        ...sent.flatMap((photo) => [["photos", photo.file], ["side", photo.side]])];
      const answer = await send("gallery", fields);
      drop(sent);
      outcome.replaceChildren(notice("good", text.enrolled(answer.pill, answer.references),
        answer.overridden ? text.overridden : ""));
    } catch (failure) {
      if (failure.body?.faults) refuse(failure.body, sent);
      else outcome.replaceChildren(notice("bad", text.refused, failure.message, failure.remedy));
      submit.disabled = false;
    }
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); enrol(""); });
  return () => { left = true; closeCamera(); drop(photos); };
}
