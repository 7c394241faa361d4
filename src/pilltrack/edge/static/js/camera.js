// Live pictures: this browser's camera goes out frame by frame, or the device's own comes in.
// At most two frames are on their way: what the device cannot look at in time is never sent.
import { liveAddress } from "./api.js";

const WIDTH = 640;
const ON_THEIR_WAY = 2;

// Shows this browser's camera in `video`, ideally so wide; resolves to what ends it. Throws where
// there is no camera, or it may not be used, or `left()`: whoever asked for it left before the
// browser was allowed to use it, and nobody would end it.
export async function openCamera(video, width, left) {
  const stream = await navigator.mediaDevices.getUserMedia({
    video: { width: { ideal: width }, facingMode: { ideal: "environment" } }, audio: false,
  });
  const close = () => {
    for (const track of stream.getTracks()) track.stop();
    if (video.srcObject === stream) video.srcObject = null;
  };
  try {
    if (!left()) {
      video.srcObject = stream;
      await video.play();
    }
  } catch (failure) {
    close();
    throw failure;
  }
  if (left()) {
    close();
    throw new Error("nobody waits for the camera");
  }
  return close;
}

// What `video` shows now, as a file of that type and name.
export async function photograph(video, name, type, quality) {
  const frame = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  frame.getContext("2d", { alpha: false }).drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => { frame.toBlob(resolve, type, quality); });
  return new File([blob], name, { type });
}

// `see(answer)` gets every answer; `lost()` is called once when it ends by itself; `left` as above.
export async function watchOwn(video, see, lost, left) {
  const closeCamera = await openCamera(video, 1280, left);
  const scale = Math.min(1, WIDTH / Math.max(video.videoWidth, video.videoHeight));
  const frame = Object.assign(document.createElement("canvas"), {
    width: Math.round(video.videoWidth * scale), height: Math.round(video.videoHeight * scale),
  });
  const brush = frame.getContext("2d", { alpha: false });
  const socket = new WebSocket(liveAddress("browser"));
  let waiting = 0;
  let ended = false;
  const push = () => {
    if (ended || waiting >= ON_THEIR_WAY || socket.readyState !== WebSocket.OPEN) return;
    waiting += 1;
    brush.drawImage(video, 0, 0, frame.width, frame.height);
    frame.toBlob((blob) => { if (!ended && blob) socket.send(blob); }, "image/jpeg", 0.85);
  };
  socket.addEventListener("open", () => { push(); });
  socket.addEventListener("message", ({ data }) => {
    waiting = Math.max(0, waiting - 1);
    see(JSON.parse(data));
    push();
  });
  const timer = setInterval(push, 40);
  const end = () => {
    ended = true;
    clearInterval(timer);
    socket.close();
    closeCamera();
  };
  socket.addEventListener("close", () => { if (!ended) { end(); lost(); } });
  return end;
}

export function watchDevice(image, see, lost) {
  const socket = new WebSocket(liveAddress("device"));
  let ended = false;
  let shown = "";
  socket.binaryType = "blob";
  socket.addEventListener("message", ({ data }) => {
    if (data instanceof Blob) {
      const old = shown;
      shown = URL.createObjectURL(data);
      image.src = shown;
      if (old) URL.revokeObjectURL(old);
    } else {
      see(JSON.parse(data));
    }
  });
  const end = () => { ended = true; socket.close(); URL.revokeObjectURL(shown); image.removeAttribute("src"); };
  socket.addEventListener("close", () => { if (!ended) { end(); lost(); } });
  return end;
}
