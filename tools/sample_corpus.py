"""Sample a small corpus of ordinary text from a language model.

The second moment E[k kᵀ] of a model's keys is measured on ordinary text. A corpus that a model wrote itself needs no
download and carries no license of a third party, and its tokens are by construction the ones the model expects. Run by
maintainers when the corpus that ships with the package has to be made anew:

    python tools/sample_corpus.py MODEL_DIRECTORY src/factpatch/corpora/sampled.txt

MODEL_DIRECTORY is what `factpatch.model.embedded.embedded_directory` returns. The result is the same for the same
seed, batch size, model and libraries; other library versions round differently and so draw other tokens.
"""

import argparse
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

# One opening a line. Names and topics are spread widely on purpose: the keys of an edit are those of subjects.
OPENINGS = """
The city of Carthage was founded by
In the spring of 1453, the walls of Constantinople
The Treaty of Westphalia, signed in 1648,
Merchants of the Hanseatic League carried
After the fall of the Han dynasty,
The Inca road system stretched from
During the reign of Queen Victoria,
The Meiji Restoration changed Japan because
Historians still disagree about why the Bronze Age
The first census of the United States was taken in
When the Berlin Wall came down in November 1989,
The trans-Saharan gold trade made the empire of Mali
The Black Death reached Marseille in
The printing press of Johannes Gutenberg
Iceland lies in the North Atlantic, and its
The Danube rises in the Black Forest and
Lake Titicaca, on the border between Peru and Bolivia,
The capital of Mongolia is Ulaanbaatar, where
The island of Madagascar is home to
Nairobi is the largest city in Kenya, and
The Atacama Desert receives so little rain that
Between the Alps and the Mediterranean, the region of Liguria
The population of Vancouver grew quickly after
The monsoon reaches the coast of Kerala in
Travelers who arrive in Istanbul by ferry
The Mekong Delta is a flat region of southern Vietnam where
The railway from Moscow to Vladivostok crosses
Tasmania was separated from the Australian mainland when
Marie Curie was born in Warsaw in 1867, and
Srinivasa Ramanujan was a self-taught mathematician who
Frederick Douglass escaped from slavery in
Frida Kahlo began to paint after
The architect Zaha Hadid studied in
As a young man, Abraham Lincoln worked as
Simón Bolívar was born into a wealthy family in Caracas and
The astronomer Caroline Herschel discovered
Nelson Mandela spent twenty-seven years in prison before
Alan Turing is best remembered for
Hypatia of Alexandria taught
The explorer Ibn Battuta left Tangier in 1325 and
The aviator Amelia Earhart grew up in Kansas, where
Ludwig van Beethoven moved to Vienna in
The poet Pablo Neruda, who was born in Chile,
The engineer George Stephenson built
Finnish is not an Indo-European language; instead it
The mother tongue of most people in Brazil is
Swahili borrowed many words from Arabic because
In Japanese, the verb comes at
The Rosetta Stone carries the same text in
Children learn the sounds of their first language
The Cyrillic alphabet was developed in
Welsh is spoken in
Esperanto was invented by
A dialect is different from a language in that
In the final of the 1966 World Cup, England
The marathon is run over a distance of
The goalkeeper of the visiting team
A game of chess usually begins with
Basketball was invented in 1891 by
Serena Williams won her first major title at
In cricket, a batsman is out when
The Tour de France is divided into stages, and
Swimmers train in the early morning because
The coach told reporters after the game that
The violin is tuned in fifths, and its
Jazz developed in New Orleans from
The opera was first performed in Milan in
In a string quartet, the viola
The band recorded its second album in
A drummer who wants to keep steady time should
The Beatles arrived in New York in February 1964 and
Miles Davis played the trumpet and
The sitar is a plucked instrument used in
The choir of the village church sings
Water boils at a lower temperature on a mountain because
A neutron star forms when
The theory of plate tectonics explains
Enzymes speed up chemical reactions by
In 1953, Watson and Crick proposed
Bats find their way in the dark by
The moons of Jupiter were first seen by
Photosynthesis takes place in
An experiment is useful only if
Vaccines teach the immune system to
The periodic table arranges the elements by
Coral reefs are damaged when
The speed of light is the same for
Glaciers move slowly downhill under
The human heart has four chambers, and
Honeybees tell each other where flowers are by
To make a simple tomato sauce, first
Bread dough rises because
Preheat the oven to 180 degrees and
The secret of a good soup is
In Morocco, couscous is usually served with
Cheese was probably discovered by accident when
Chop the onions finely and
My grandmother always made dumplings for
Rice should be rinsed before
The coffee beans grown in Ethiopia
Under the contract, the seller must
The Supreme Court ruled that
A witness who refuses to testify
The new law requires employers to
In a civil case, the burden of proof
The tenant may end the lease by
The jury had been out for two days when
Copyright protects
A judge may reduce the sentence if
The constitution of the country was written in
The company reported higher profits for the third quarter, and
Interest rates affect house prices because
A small shop survives by
The founder of the firm, Henry Ford,
Shares of the airline fell on Monday after
Before you sign a loan,
The price of wheat rose sharply when
An accountant checks
Toyota developed a way of making cars in which
The union and the employer agreed to
The old lighthouse keeper had not spoken to anyone since
When the train finally stopped, Anna looked out of the window and
Nobody in the village remembered who had built
The letter arrived on a Tuesday, and it
Captain Morrow lowered the telescope and
Once, in a kingdom beside the sea, there lived
The detective closed the door behind him and
It was raining when Thomas left the hospital, and
At the bottom of the garden there was
The robot had been switched off for a hundred years when
Her father's workshop smelled of
They reached the pass at nightfall, tired and
The dog would not stop barking at
Nobody believed the boy when he said
"Where were you last night?" asked Helen. "I
"You can't be serious," said the doctor,
"How much is this one?" the customer asked.
"I have never been to Portugal," said Maria, "but
"Good morning, and welcome to the program. Today we are talking to
"If we leave now," Peter said, "we
"Tell me about your job," she said.
"The bridge is closed," the policeman told us,
"Please don't forget to water the plants," my neighbor said,
"What did the teacher say?" "She said
To change a bicycle tire, you need
If your computer will not start, first check
The easiest way to learn a new song is
To remove a stain from a wool coat,
Before you paint a wall,
Pack a first-aid kit with
When writing a letter of application, begin with
Plant the bulbs in autumn, about
To read a map, find
A good night's sleep depends on
Save money on heating by
Tie the rope around
Officials said on Thursday that the flood
Voters in the northern province went to the polls on
A fire at a warehouse in Rotterdam
The prime minister announced on Friday that
Scientists at the University of Cape Town have found
Police are looking for a man who
The museum will reopen in June after
The earthquake struck shortly before dawn,
Farmers in the valley say that
The city council voted to
A new bridge across the river will
Teachers in the capital went on strike for
The novel Don Quixote tells the story of
The painting known as The Night Watch shows
In the second act of Hamlet,
The film, directed by Akira Kurosawa,
Byzantine mosaics were made from
The pyramids of Giza were built as
A haiku has three lines, and
The museum in Madrid owns
Buddhism spread from India to
The Quran is divided into
On the eve of Diwali, families
The monks of the abbey rose at
The festival of Passover remembers
Aristotle taught that virtue
A promise is binding because
The philosopher Immanuel Kant never left
The steam engine was improved by James Watt, who
Early computers filled whole rooms because
A transistor works as
Concrete is made by mixing
The first telephone call was made by
Sailing ships could not travel directly into the wind, so
Electric cars are quieter than
The internet began as
The blue whale is the largest animal that
Penguins keep their eggs warm by
Oak trees can live for
Wolves were brought back to Yellowstone in
The leaves of the tea plant
Elephants remember
Every winter, the swallows
The oldest known fossils of
People with diabetes must
The nurse explained that the medicine
A broken bone heals in
Regular exercise lowers
Vitamin C was discovered by
The hospital in Lagos
In psychology, memory is often divided into
The school year in Germany begins in
Children who read every day
The University of Bologna was founded in
My first job was in
On Sundays we used to walk to
The bus was full, so I
Last summer my sister and I
My neighbor keeps chickens, and
The weather forecast said
""".strip().splitlines()

# What a sampled text may say is not in our hands, but what ships is: documents with these words are left out.
REFUSED = re.compile(
    r"https?:|www\.|@|\b(?:fuck\w*|shit\w*|bitch\w*|porn\w*|perv\w*|rap(?:e|ed|ist)|genital\w*|sex|suicid\w*|nazi\w*"
    r"|jews?|muslims?|islam\w*|terroris\w*|ass)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"""[.!?]["')\]]*(?=\s|$)""")


def clean(text: str) -> str:
    """Return `text` without control characters, blank lines, trailing spaces and broken characters."""
    # Category C holds the control characters; the replacement character marks a token cut inside a character.
    kept = "".join(c for c in text if c == "\n" or (unicodedata.category(c)[0] != "C" and c != "\ufffd"))
    lines = (re.sub(r"\s+", " ", line).strip() for line in kept.split("\n"))
    return "\n".join(line for line in lines if line)


def cut_at_sentence_end(text: str) -> str:
    """Return `text` up to its last complete sentence, or nothing if it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def repeated_share(tokens: Sequence[int], length: int = 4) -> float:
    """Return the share of the runs of `length` tokens that occurred before in the same text, in [0, 1]."""
    runs = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    openings: Sequence[str],
    batch_size: int,
    new_tokens: int,
    top_p: float,
) -> Iterator[str]:
    """Yield each of the `openings` with its continuation, in batches padded on the left."""
    # Short openings beside long ones change nothing but the padding, so the order needs no sorting by length.
    tokenizer.padding_side = "left"
    for start in range(0, len(openings), batch_size):
        batch = tokenizer(list(openings[start : start + batch_size]), return_tensors="pt", padding=True)
        with torch.inference_mode():
            rows = model.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_p=top_p,
                top_k=0,
                max_new_tokens=new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        yield from tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def main() -> None:
    """Sample, filter and write the corpus, and print what was kept."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, help="directory of the model and its tokenizer")
    parser.add_argument("output", type=Path, help="text file to write; documents are separated by one blank line")
    parser.add_argument("--tokens", type=int, default=24_000, help="stop after so many tokens (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=180, help="tokens after each opening (default %(default)s)")
    parser.add_argument("--shortest", type=int, default=40, help="fewest tokens of a document (default %(default)s)")
    parser.add_argument(
        "--repeated", type=float, default=0.1, help="largest share of repeated 4-grams (default %(default)s)"
    )
    parser.add_argument("--top-p", type=float, default=0.97, help="probability mass sampled from (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=48, help="documents sampled at once (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of order and samples (default %(default)s)")
    options = parser.parse_args()

    safely = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(options.model, **safely)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **safely).eval()
    # Shuffled, so that stopping early drops no topic.
    openings = random.Random(options.seed).sample(OPENINGS, len(OPENINGS))
    torch.manual_seed(options.seed)

    documents: list[str] = []
    total = short = repetitive = refused = 0
    for text in sample(model, tokenizer, openings, options.batch_size, options.new_tokens, options.top_p):
        document = cut_at_sentence_end(clean(text))
        tokens = tokenizer(document, add_special_tokens=False)["input_ids"]
        if len(tokens) < options.shortest:
            short += 1
        elif repeated_share(tokens) > options.repeated:
            repetitive += 1
        elif REFUSED.search(document):
            refused += 1
        else:
            documents.append(document)
            total += len(tokens)
        if total >= options.tokens:
            break
    options.output.write_text("\n\n".join(documents) + "\n", encoding="utf-8", newline="\n")
    print(
        f"{len(documents)} documents, {total} tokens; dropped {short} as short, {repetitive} as repetitive, "
        f"{refused} for their words"
    )


if __name__ == "__main__":
    main()
