"""Story openings, instructions with answers and multiple-choice questions in Portuguese, all our own writing.

Short factual documents (`curiosidades`) of the embedded corpus, in our own words; the last ones are held out.
"""





_FACTS = """
A capivara é o maior roedor do mundo. Ela vive perto de rios e lagoas, nada muito bem e costuma andar em grupo. Quando
percebe perigo, mergulha e fica só com o nariz fora da água.

A água do mar é salgada porque a chuva e os rios dissolvem sais das rochas e levam tudo para o oceano. Como o sol evapora
a água, mas não evapora o sal, ele se acumula ao longo de milhões de anos.

O tucano tem um bico grande, mas bem leve, porque por dentro ele é cheio de espaços com ar. O bico ajuda a ave a alcançar
frutas na ponta dos galhos e a perder calor nos dias quentes.

O Brasil tem seis biomas: Amazônia, Cerrado, Caatinga, Mata Atlântica, Pampa e Pantanal. Cada um tem clima, plantas e
animais próprios.

A lua não tem luz própria. O que vemos à noite é a luz do sol refletida na superfície dela. Conforme a posição da lua em
volta da Terra, enxergamos uma parte maior ou menor do lado iluminado.

As abelhas visitam muitas flores para recolher néctar. No caminho, levam o pólen de uma flor para outra, e assim as plantas
conseguem formar frutos e sementes. Sem as abelhas, faltariam muitos alimentos.

A mandioca é uma raiz cultivada pelos povos indígenas há milhares de anos. Dela se fazem farinha, tapioca, polvilho e beiju.
A mandioca-brava precisa ser bem preparada, pois crua ela é venenosa.

O arco-íris aparece quando a luz do sol atravessa gotas de água no ar. As gotas separam a luz em várias cores. Para
enxergá-lo, é preciso ficar de costas para o sol.

O coração é um músculo que bombeia o sangue para todo o corpo. Numa pessoa adulta em repouso, ele bate entre sessenta e
cem vezes por minuto. Durante uma corrida, bate mais depressa.

O rio Amazonas é o maior do mundo em volume de água. Ele nasce nos Andes, no Peru, atravessa o norte do Brasil e deságua
no oceano Atlântico.

As formigas deixam um rastro de cheiro pelo caminho. As companheiras seguem esse rastro até a comida. Por isso costumamos
ver filas de formigas que vão e voltam.

O fermento do pão é feito de fungos muito pequenos. Eles se alimentam dos açúcares da farinha e soltam um gás. Esse gás
forma bolhas e faz a massa crescer.

A onça-pintada é o maior felino das Américas. Cada animal tem um desenho diferente de manchas, como se fosse uma impressão
digital. Ela nada bem e caça principalmente ao anoitecer.

O dia e a noite existem porque a Terra gira em torno de si mesma. Uma volta completa dura cerca de vinte e quatro horas.
Enquanto é dia de um lado do planeta, é noite do outro.

O caju que comemos como fruta é, na verdade, um falso fruto. O fruto verdadeiro é a castanha que fica presa na ponta. A
castanha precisa ser torrada antes de ser comida.

As baleias são mamíferos e respiram ar. De tempos em tempos, elas sobem à superfície e soltam o ar por um orifício no alto
da cabeça. Os filhotes mamam o leite da mãe debaixo da água.

O samba de roda do Recôncavo Baiano mistura música, dança e poesia. As pessoas formam um círculo, batem palmas e cantam,
enquanto alguém dança no centro.

As plantas fabricam o próprio alimento com luz, água e gás carbônico. Esse processo se chama fotossíntese. Durante a
fotossíntese, elas soltam oxigênio no ar.

O tatu tem uma carapaça dura que protege o corpo. Ele cava tocas com as unhas fortes e come insetos, raízes e frutas. O
tatu-bola consegue se fechar como uma bolinha.

O gelo flutua porque a água, ao congelar, ocupa mais espaço e fica menos densa. Por isso os lagos congelam primeiro na
superfície, e os peixes continuam vivos embaixo.

A literatura de cordel conta histórias em versos rimados. Os folhetos costumam ter capas feitas com xilogravura e eram
pendurados em cordas nas feiras do Nordeste.

As estrelas parecem pequenas porque estão muito longe. Na verdade, muitas são maiores do que o sol. O sol é a estrela mais
próxima da Terra.

O beija-flor bate as asas dezenas de vezes por segundo. Assim consegue parar no ar e até voar para trás. Ele gasta muita
energia e precisa comer muitas vezes por dia.

A chuva se forma quando o vapor de água esfria e vira gotinhas nas nuvens. Quando as gotinhas se juntam e ficam pesadas,
elas caem. Depois, a água volta a evaporar, e o ciclo recomeça.

A capoeira foi criada no Brasil por africanos escravizados e seus descendentes. Ela reúne luta, dança e música. O berimbau
marca o ritmo da roda.

Os dentes de leite começam a cair por volta dos seis anos. No lugar deles nascem os dentes permanentes. Escovar os dentes
depois das refeições evita as cáries.

O Pantanal é uma das maiores áreas alagadas do mundo. Na época da cheia, os rios transbordam e cobrem os campos. Na seca,
a água baixa e deixa lagoas cheias de peixes.

O som precisa de um meio para viajar, como o ar ou a água. No espaço quase vazio, não há como ele se espalhar. Por isso os
astronautas conversam pelo rádio.

A jabuticaba nasce grudada no tronco da árvore. As flores brancas aparecem primeiro e, algumas semanas depois, surgem as
frutas pretas e redondas.

As tartarugas marinhas voltam à praia para pôr os ovos na areia. Meses depois, os filhotes saem à noite e correm para o
mar, guiados pelo brilho da água.

O papel é feito com fibras de madeira misturadas com água. A mistura é espalhada, prensada e seca. Reciclar papel poupa
água, energia e árvores.

Brasília foi inaugurada em 21 de abril de 1960. O plano da cidade foi desenhado por Lúcio Costa, e muitos prédios foram
projetados por Oscar Niemeyer. Antes dela, a capital era o Rio de Janeiro.

Os vaga-lumes produzem luz dentro do próprio corpo. Uma reação química faz o abdome brilhar quase sem gerar calor. Eles
piscam para encontrar um par.

O açaí é o fruto de uma palmeira da Amazônia. No Pará, é comum tomá-lo com farinha e peixe. A palmeira cresce em terrenos
úmidos, perto dos rios.

A bússola tem uma agulha que funciona como um ímã. Ela se alinha com o campo magnético da Terra e indica o norte. Os
navegantes usam esse instrumento há muitos séculos.

O sangue parece vermelho por causa do ferro que existe na hemoglobina. Essa proteína carrega o oxigênio dos pulmões para
o resto do corpo.

O lobo-guará vive no Cerrado e tem pernas longas. Ele come pequenos animais e muitas frutas, principalmente a fruta-do-lobo. Ao
espalhar as sementes, ajuda a plantar novas árvores.

A areia da praia é feita de rochas e conchas quebradas em pedacinhos. O vento e as ondas levaram muito tempo para moer
esses grãos.

A festa junina celebra a colheita e os santos do mês de junho. Há quadrilha, fogueira, bandeirinhas e comidas de milho,
como pamonha e canjica.

O camaleão muda de cor para se comunicar e para regular a temperatura. Nem sempre a mudança serve para se esconder.

Os vulcões são aberturas por onde sai rocha derretida do interior da Terra. Quando essa rocha esfria, forma montanhas e
ilhas. Hoje não há vulcões ativos no Brasil.

O sistema Braille permite ler com a ponta dos dedos. Cada letra é um conjunto de pontos em relevo. Ele foi criado por Louis
Braille, um jovem francês que perdeu a visão na infância.

As folhas ficam verdes por causa da clorofila. Em alguns lugares frios, ela desaparece no outono, e então surgem tons de
amarelo e vermelho.

O frevo nasceu em Pernambuco no fim do século XIX. A música é rápida, e os passistas dançam com sombrinhas coloridas. Em
2012, o frevo foi reconhecido como patrimônio da humanidade.

O polvo tem oito braços e três corações. Ele é muito esperto, resolve problemas e consegue passar por buracos apertados,
porque não tem ossos.

A eletricidade das casas brasileiras vem, em grande parte, da força da água. Nas usinas, a queda da água gira turbinas,
que movem geradores.

O ipê perde as folhas e depois se cobre de flores. Há ipês amarelos, roxos, rosas e brancos. No Cerrado, a florada costuma
acontecer na estação seca.

As minhocas cavam túneis na terra. Esses túneis deixam entrar ar e água, o que ajuda as raízes. Além disso, as minhocas
transformam restos de folhas em adubo.

O Sistema Solar tem oito planetas. Mercúrio é o mais próximo do sol, e Netuno é o mais distante. Júpiter é o maior de
todos.

Machado de Assis nasceu no Rio de Janeiro em 1839. Escreveu romances, contos e crônicas. Foi o primeiro presidente da
Academia Brasileira de Letras.

O bicho-preguiça se move devagar para gastar pouca energia. Ele passa quase todo o tempo nas árvores e desce ao chão mais
ou menos uma vez por semana.

O sal ajuda a conservar alimentos porque retira a água de que os micróbios precisam. A carne de sol e o bacalhau são
preparados assim.

A Caatinga é um bioma que só existe no Brasil. Muitas de suas plantas perdem as folhas na seca e guardam água no caule ou
nas raízes. O mandacaru é um dos cactos mais conhecidos.

Os morcegos são os únicos mamíferos que voam de verdade. Muitos comem frutas e espalham sementes. No escuro, eles se
orientam pelo eco dos sons que emitem.

O relógio de sol mostra as horas com uma sombra. À medida que o sol parece se mover no céu, a sombra muda de lugar sobre
os números.

O café chegou ao Brasil no século XVIII, pelo Pará. Mais tarde, espalhou-se pelo Sudeste. Até hoje o país é o maior
produtor de café do mundo.

Lavar as mãos com água e sabão remove sujeira e micróbios. É importante lavá-las antes de comer e depois de usar o
banheiro.

O boto-cor-de-rosa vive nos rios da Amazônia. Na época da cheia, ele nada entre as árvores alagadas em busca de peixes.

As nuvens são feitas de gotinhas de água ou de cristais de gelo. Elas parecem leves, mas uma nuvem grande pode pesar muitas
toneladas.

O chocolate é feito das sementes do cacau. Depois de colhidas, elas fermentam, secam ao sol e são torradas. O sul da Bahia
é uma região famosa pelo cacau.

O ouvido também ajuda no equilíbrio. Dentro dele há canais com líquido que informam ao cérebro a posição da cabeça. Quando
giramos muito, esse líquido continua se movendo, e ficamos tontos.

A ararinha-azul é uma ave da Caatinga que desapareceu da natureza. Criadas em cativeiro, algumas foram soltas na Bahia em
2022 para que a espécie volte a viver livre.

As marés sobem e descem principalmente por causa da atração da lua. Em muitos lugares do Brasil, há duas marés altas e
duas marés baixas por dia.

O guaraná é uma planta da Amazônia. O fruto aberto lembra um olho. O povo Sateré-Mawé cultiva o guaraná há muitas gerações.

O solo se forma aos poucos, quando as rochas se desgastam e se misturam com restos de plantas e de animais. Um centímetro
de solo pode levar séculos para surgir.

A rede de dormir é uma invenção dos povos indígenas. Feita de fibras ou de algodão, ela é fresca e fácil de carregar. Ainda
hoje é muito usada no Norte e no Nordeste.
"""

NUM_HELD_OUT_FACTS = 6
_DOCUMENTS = tuple(" ".join(block.split()) for block in _FACTS.strip().split("\n\n"))
TRAIN_FACTS: tuple[str, ...] = _DOCUMENTS[:-NUM_HELD_OUT_FACTS]
HELD_OUT_FACTS: tuple[str, ...] = _DOCUMENTS[-NUM_HELD_OUT_FACTS:]



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
