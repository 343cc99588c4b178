// Titles as they are said: "Matrix, The (1999)" is The Matrix, of 1999. Data and ids stay as they are.

const YEAR = /\s*\((\d{4})(?:[-–]\d{0,4})?\)$/;
const ALSO = /\s*\(([^()]*)\)$/;
const ARTICLE = new RegExp("^(.+), (The|A|An|Le|La|Les|L'|Il|Lo|I|Gli|El|Los|Las|Der|Die|Das|Ein|Eine|Un|Une|Una|O|Os|As|" +
  "Um|Uma|De|Het|Den|Det|En|Ett)$");

const turned = (name) => name.replace(ARTICLE, (_, rest, article) => article + (article.endsWith("'") ? "" : " ") + rest);

// as `spoken` in sparkml_sgdals/serving/model/titles.py, and what that leaves out
export function told(title) {
  let name = title.trim();
  const year = name.match(YEAR)?.[1] ?? "";
  name = name.replace(YEAR, "");
  let also = "";
  for (let found = name.match(ALSO); found; found = name.match(ALSO)) {
    also = found[1];
    name = name.replace(ALSO, "");
  }
  return { name: turned(name) || title, year, also: turned(also.replace(/^a\.?k\.?a\.? /i, "")) };
}

const byId = (item) => (typeof item === "number" ? `No. ${item}` : item);
export const toldOf = (one) => (one.title ? told(one.title) : { name: byId(one.item), year: "", also: "" });
export const nameOf = (one) => toldOf(one).name;
