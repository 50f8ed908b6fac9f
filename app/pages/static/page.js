// Comfort only: every page works without this. Nothing is loaded from anywhere else.

import { tickTimes } from "./times.js";
import { watchCharts } from "./charts.js";
import { watchViewers } from "./viewer.js";
import { watchUpload } from "./upload.js";
import { followJob, followList } from "./live.js";

tickTimes();
document.querySelector("[data-menu] [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
watchCharts(document);
watchViewers();
watchUpload();
followJob();
followList();
