"""Story openings, instructions with answers and multiple-choice questions in Portuguese, all our own writing."""

PROMPTS: tuple[str, ...] = (
    "Era uma vez uma menina",
    "Numa manhã de chuva,",
    "Pedro morava perto do rio",
    "Depois da aula, Helena",
    "O avô de Miguel",
    "Certo dia, um gato preto",
    "No fim das férias, Davi e Sofia",
    "A professora",
)
"""Openings from which the demo lets a model write on."""

_INSTRUCTIONS: tuple[tuple[str, str], ...] = (
    ("Qual é a capital do Brasil?", "A capital do Brasil é Brasília."),
    ("Quantos dias tem uma semana?", "Uma semana tem sete dias."),
    ("Escreva o plural de pão.", "O plural de pão é pães."),
    ("Qual é o feminino de ator?", "O feminino de ator é atriz."),
    ("Diga o contrário de alto.", "O contrário de alto é baixo."),
    ("Cite três frutas brasileiras.", "Três frutas brasileiras são a jabuticaba, a pitanga e o caju."),
    ("Quanto é sete mais cinco?", "Sete mais cinco é igual a doze."),
    ("Explique o que é uma ilha.", "Uma ilha é uma porção de terra cercada de água por todos os lados."),
    ("Por que o gelo flutua?", "O gelo flutua porque é menos denso do que a água líquida."),
    ("Escreva uma frase com a palavra janela.", "O gato dormia ao lado da janela aberta."),
    ("Como se agradece em português?", "Um homem diz obrigado, e uma mulher diz obrigada."),
    ("O que as plantas precisam para crescer?", "As plantas precisam de luz, água, ar e nutrientes do solo."),
    ("Quantas patas tem uma aranha?", "Uma aranha tem oito patas."),
    ("Complete: o céu está cheio de...", "O céu está cheio de estrelas."),
    ("Qual é o maior bioma do Brasil?", "O maior bioma do Brasil é a Amazônia."),
    ("Dê um conselho a quem tem medo do escuro.", "Respire fundo, acenda uma luz fraca e lembre que o quarto é o mesmo."),
    ("Passe para o plural: a flor amarela.", "As flores amarelas."),
    ("Passe para o passado: Ana canta.", "Ana cantou."),
    ("Que animal produz mel?", "A abelha produz mel."),
    ("Em que estação faz mais frio?", "Faz mais frio no inverno."),
    ("Sugira um nome para um cachorro.", "Um bom nome para um cachorro é Paçoca."),
    ("Como se faz um suco de limão?", "Esprema os limões, junte água gelada e um pouco de açúcar, mexa e sirva."),
    ("Escreva um bilhete curto de desculpas.", "Desculpe por ter quebrado o seu lápis. Amanhã eu trago outro."),
    ("Você sabe que horas são agora?", "Não, eu não tenho relógio. Olhe no seu telefone ou num relógio de parede."),
)

_QUESTIONS: tuple[tuple[str, tuple[str, str, str, str], int], ...] = (
    ("Qual destes animais é um mamífero?", ("a baleia", "a tartaruga", "o tucano", "o sapo"), 0),
    ("Que palavra está no plural?", ("mesa", "flores", "caderno", "janela"), 1),
    ("O que as abelhas recolhem das flores?", ("areia", "sal", "néctar", "folhas secas"), 2),
    ("Qual é o maior rio do Brasil em volume de água?", ("o Tietê", "o São Francisco", "o Paraná", "o Amazonas"), 3),
    ("Qual instrumento marca o ritmo da roda de capoeira?", ("o berimbau", "o piano", "o violino", "a harpa"), 0),
    ("De onde vem a luz da lua?", ("das nuvens", "do sol", "do mar", "da própria lua"), 1),
    ("De que planta se faz a tapioca?", ("do milho", "do trigo", "da mandioca", "do arroz"), 2),
    ("Complete: as meninas estavam muito...", ("cansado", "cansada", "cansados", "cansadas"), 3),
    ("Qual bioma existe só no Brasil?", ("a Caatinga", "o deserto", "a tundra", "a savana africana"), 0),
    ("Quantos planetas tem o Sistema Solar?", ("seis", "oito", "dez", "doze"), 1),
    ("O que faz a massa do pão crescer?", ("o sal", "a água fria", "o fermento", "a casca"), 2),
    ("Qual é o contrário de cheio?", ("grande", "pesado", "aberto", "vazio"), 3),
    ("Para que serve uma bússola?", ("indicar o norte", "medir o peso", "ver as horas", "ouvir música"), 0),
    ("Qual destas frutas nasce grudada no tronco?", ("a melancia", "a jabuticaba", "o abacaxi", "a uva"), 1),
    ("Em que mês começam as festas juninas?", ("janeiro", "abril", "junho", "outubro"), 2),
    ("Quem escreveu Dom Casmurro?", ("Lúcio Costa", "Louis Braille", "Oscar Niemeyer", "Machado de Assis"), 3),
)


def sample_instructions() -> list[dict[str, list[dict[str, str]]]]:
    """Return conversations of one turn: `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`."""
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in _INSTRUCTIONS
    ]


def sample_questions() -> list[dict[str, str | list[str] | int]]:
    """Return multiple-choice questions: `question`, four `choices` and `answer`, the index of the right one."""
    return [{"question": text, "choices": list(choices), "answer": right} for text, choices, right in _QUESTIONS]
