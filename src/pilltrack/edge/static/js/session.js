// Where others can reach the device it asks for its token once; a cookie keeps the rest.
import { send } from "./api.js";
import { element, notice } from "./dom.js";
import { text } from "./strings.js";

export function signIn(done) {
  const token = element("input", { type: "password", name: "token", required: true, autocomplete: "current-password" });
  const trouble = element("div");
  const form = element("form", { class: "card narrow" },
    element("h1", {}, text.signIn),
    element("p", {}, text.signInHelp),
    element("label", {}, text.token, token),
    element("button", { class: "main", type: "submit" }, text.signIn),
    trouble);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await send("session", [["token", token.value]]);
      done();
    } catch (failure) {
      trouble.replaceChildren(notice("bad", text.failed, failure.message, failure.remedy));
    }
  });
  return form;
}
