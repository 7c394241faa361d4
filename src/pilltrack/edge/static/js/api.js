// The device's API. Every failure is a Failure with what happened and what to do.
import { text } from "./strings.js";

export const API = "/api/v1";

export class Failure extends Error {
  constructor(status, detail, remedy, body = {}) {
    super(detail);
    Object.assign(this, { status, remedy, body });
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path.startsWith("/") ? path : `${API}/${path}`, options);
  } catch {
    throw new Failure(0, text.offline, "");
  }
  if (answer.status === 204) return null;
  const isJson = (answer.headers.get("content-type") ?? "").includes("json");
  const body = isJson ? await answer.json() : {};
  if (!answer.ok) throw new Failure(answer.status, body.detail ?? answer.statusText, body.remedy ?? "", body);
  return body;
}

export const send = (path, fields) => {
  const form = new FormData();
  for (const [name, value] of fields) {
    if (value instanceof Blob) form.append(name, value, value.name ?? "photo.jpg");
    else form.append(name, value);
  }
  return ask(path, { method: "POST", body: form });
};

export const liveAddress = (source) =>
  `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${API}/live?source=${source}`;
