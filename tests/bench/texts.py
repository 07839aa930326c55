"""Texts of many kinds, for what is measured of texts: how many tokens they have, and how well that is estimated.

Owns nothing. Each is written for this, or made from what comes with Python; none is a quotation.
"""

# ruff: noqa: E501 (characters of many widths)

from __future__ import annotations

import base64
import inspect
import json
import random
import textwrap

_SCRIPTS = {
    "English": (
        "The night train leaves the coast at nine and reaches the capital before the bakeries open. Most people sleep; a few "
        "read, and one old man looks out of the window all the time, although there is nothing to be seen but his own face. "
        "Asked why he does not lie down, he says that he has paid for the whole way and wants to see it. Nobody can argue "
        "with that. When the sun comes up at last, the fields are white, and he is the only one who saw the snow begin."
    ),
    "German": (
        "Der Nachtzug verlässt die Küste um neun und erreicht die Hauptstadt, bevor die Bäckereien öffnen. Die meisten "
        "schlafen, einige lesen, und ein alter Mann schaut die ganze Zeit aus dem Fenster, obwohl außer seinem eigenen "
        "Gesicht nichts zu sehen ist. Auf die Frage, warum er sich nicht hinlege, sagt er, er habe für die ganze Strecke "
        "bezahlt und wolle sie auch sehen. Die Geschwindigkeitsbegrenzung auf Brücken verlängert die Reise erheblich."
    ),
    "French": (
        "Le train de nuit quitte la côte à neuf heures et arrive dans la capitale avant l'ouverture des boulangeries. La "
        "plupart des voyageurs dorment, quelques-uns lisent, et un vieil homme regarde sans cesse par la fenêtre, bien "
        "qu'on n'y voie que son propre visage. Quand on lui demande pourquoi il ne s'allonge pas, il répond qu'il a payé "
        "pour tout le trajet et qu'il veut le voir. À l'aube, les champs sont déjà tout blancs."
    ),
    "Spanish": (
        "El tren nocturno sale de la costa a las nueve y llega a la capital antes de que abran las panaderías. La mayoría "
        "duerme, algunos leen, y un anciano mira todo el tiempo por la ventana, aunque no se ve más que su propia cara. "
        "Cuando le preguntan por qué no se acuesta, dice que ha pagado el viaje entero y que quiere verlo. Al amanecer los "
        "campos están blancos, y él es el único que vio cómo empezaba a nevar."
    ),
    "Polish": (
        "Nocny pociąg odjeżdża znad morza o dziewiątej i dociera do stolicy, zanim otworzą się piekarnie. Większość ludzi "
        "śpi, kilku czyta, a pewien starszy mężczyzna przez cały czas patrzy w okno, chociaż nie widać w nim nic oprócz "
        "jego własnej twarzy. Zapytany, dlaczego się nie położy, odpowiada, że zapłacił za całą drogę i chce ją zobaczyć."
    ),
    "Turkish": (
        "Gece treni saat dokuzda kıyıdan ayrılır ve fırınlar açılmadan önce başkente varır. Çoğu kişi uyur, birkaçı kitap "
        "okur, yaşlı bir adam ise kendi yüzünden başka bir şey görünmediği hâlde sürekli pencereden dışarı bakar. Neden "
        "uzanmadığını sorduklarında, bütün yol için para ödediğini ve onu görmek istediğini söyler."
    ),
    "Vietnamese": (
        "Chuyến tàu đêm rời bờ biển lúc chín giờ và đến thủ đô trước khi các tiệm bánh mở cửa. Hầu hết mọi người đều ngủ, "
        "một vài người đọc sách, còn một ông già cứ nhìn ra ngoài cửa sổ suốt, dù chẳng thấy gì ngoài khuôn mặt của chính "
        "mình. Khi được hỏi vì sao không nằm xuống, ông nói rằng ông đã trả tiền cho cả chặng đường và muốn được ngắm nó."
    ),
    "Greek": (
        "Το νυχτερινό τρένο φεύγει από την ακτή στις εννέα και φτάνει στην πρωτεύουσα πριν ανοίξουν οι φούρνοι. Οι "
        "περισσότεροι κοιμούνται, μερικοί διαβάζουν, και ένας γέρος κοιτάζει όλη την ώρα από το παράθυρο, αν και δεν "
        "φαίνεται τίποτα εκτός από το πρόσωπό του. Όταν τον ρωτούν γιατί δεν ξαπλώνει, λέει ότι πλήρωσε για όλη τη διαδρομή."
    ),
    "Russian": (
        "Ночной поезд отходит от побережья в девять и прибывает в столицу раньше, чем открываются булочные. Большинство "
        "пассажиров спит, некоторые читают, а один старик всё время смотрит в окно, хотя там не видно ничего, кроме его "
        "собственного лица. На вопрос, почему он не ляжет, он отвечает, что заплатил за всю дорогу и хочет её увидеть. "
        "Когда наконец встаёт солнце, поля уже белые, и только он видел, как начинался снег."
    ),
    "Ukrainian": (
        "Нічний потяг вирушає від узбережжя о дев'ятій і прибуває до столиці раніше, ніж відчиняються пекарні. Більшість "
        "пасажирів спить, дехто читає, а один літній чоловік увесь час дивиться у вікно, хоча там не видно нічого, крім "
        "його власного обличчя. Коли його питають, чому він не лягає, він каже, що заплатив за всю дорогу."
    ),
    "Hebrew": (
        "רכבת הלילה יוצאת מן החוף בתשע ומגיעה לבירה לפני שהמאפיות נפתחות. רוב הנוסעים ישנים, אחדים קוראים, וזקן אחד מביט כל "
        "הזמן מן החלון, אף על פי שלא רואים בו דבר מלבד פניו שלו. כששואלים אותו מדוע אינו שוכב, הוא אומר ששילם על כל הדרך "
        "ורוצה לראות אותה. עם עלות השחר השדות כבר לבנים."
    ),
    "Arabic": (
        "يغادر القطار الليلي الساحل في التاسعة ويصل إلى العاصمة قبل أن تفتح المخابز أبوابها. ينام معظم الركاب، ويقرأ بعضهم، "
        "بينما ينظر رجل عجوز من النافذة طوال الوقت، مع أنه لا يرى فيها شيئا سوى وجهه. وحين يسألونه لماذا لا يستلقي، يقول إنه "
        "دفع ثمن الطريق كله ويريد أن يراه. وعندما تشرق الشمس أخيرا تكون الحقول بيضاء، وهو وحده الذي رأى بداية الثلج."
    ),
    "Persian": (
        "قطار شبانه ساعت نه از ساحل حرکت می‌کند و پیش از باز شدن نانوایی‌ها به پایتخت می‌رسد. بیشتر مسافران خوابند، چند نفر "
        "کتاب می‌خوانند و پیرمردی تمام مدت از پنجره بیرون را نگاه می‌کند، هرچند جز چهره خودش چیزی دیده نمی‌شود. وقتی از او "
        "می‌پرسند چرا دراز نمی‌کشد، می‌گوید که پول تمام راه را داده است و می‌خواهد آن را ببیند."
    ),
    "Hindi": (
        "रात की रेलगाड़ी नौ बजे समुद्र तट से चलती है और बेकरियाँ खुलने से पहले राजधानी पहुँच जाती है। ज़्यादातर लोग सोते हैं, कुछ पढ़ते हैं, और एक "
        "बूढ़ा आदमी पूरे समय खिड़की से बाहर देखता रहता है, हालाँकि उसे अपने चेहरे के सिवा कुछ दिखाई नहीं देता। जब उससे पूछा जाता है कि वह लेटता "
        "क्यों नहीं, तो वह कहता है कि उसने पूरे रास्ते के पैसे दिए हैं और वह उसे देखना चाहता है।"
    ),
    "Bengali": (
        "রাতের ট্রেন নয়টায় সমুদ্রতীর ছেড়ে যায় এবং বেকারি খোলার আগেই রাজধানীতে পৌঁছায়। বেশিরভাগ মানুষ ঘুমায়, কয়েকজন পড়ে, আর একজন "
        "বৃদ্ধ সারাক্ষণ জানালা দিয়ে তাকিয়ে থাকেন, যদিও নিজের মুখ ছাড়া কিছুই দেখা যায় না। কেন শুয়ে পড়েন না জিজ্ঞাসা করলে তিনি বলেন, "
        "পুরো পথের ভাড়া তিনি দিয়েছেন, তাই পুরোটা দেখতে চান।"
    ),
    "Tamil": (
        "இரவு ரயில் ஒன்பது மணிக்குக் கடற்கரையிலிருந்து புறப்பட்டு, பேக்கரிகள் திறப்பதற்கு முன் தலைநகரை அடைகிறது. பெரும்பாலானவர்கள் "
        "தூங்குகிறார்கள், சிலர் படிக்கிறார்கள், ஒரு முதியவர் மட்டும் தன் முகத்தைத் தவிர எதுவும் தெரியாதபோதும் எப்போதும் ஜன்னல் வழியாகப் பார்க்கிறார்."
    ),
    "Thai": (
        "รถไฟกลางคืนออกจากชายฝั่งตอนสามทุ่มและถึงเมืองหลวงก่อนที่ร้านขนมปังจะเปิด คนส่วนใหญ่นอนหลับ บางคนอ่านหนังสือ และชายชราคนหนึ่งมองออกไปนอกหน้าต่างตลอดเวลา "
        "แม้ว่าจะไม่เห็นอะไรเลยนอกจากใบหน้าของตัวเอง เมื่อถูกถามว่าทำไมไม่นอนลง เขาตอบว่าเขาจ่ายเงินค่าเดินทางทั้งหมดแล้วและอยากเห็นมัน"
    ),
    "Georgian": (
        "ღამის მატარებელი ცხრა საათზე ტოვებს სანაპიროს და დედაქალაქში მანამდე ჩადის, სანამ საცხობები გაიღება. უმეტესობას სძინავს, "
        "ზოგი კითხულობს, ერთი მოხუცი კი სულ ფანჯარაში იყურება, თუმცა საკუთარი სახის გარდა არაფერი ჩანს."
    ),
    "Chinese": (
        "夜班火车九点离开海边，在面包店开门之前到达首都。大多数人都睡了，有几个人在看书，还有一位老人一直望着窗外，尽管除了自己的脸什么也看不见。"
        "有人问他为什么不躺下，他说他付了全程的钱，想把这段路看完。谁也没法反驳。太阳终于升起的时候，田野已经一片雪白，只有他看见了雪是怎么开始下的。"
    ),
    "Chinese, traditional": (
        "夜班火車九點離開海邊，在麵包店開門之前到達首都。大多數人都睡了，有幾個人在看書，還有一位老人一直望著窗外，儘管除了自己的臉什麼也看不見。"
        "有人問他為什麼不躺下，他說他付了全程的錢，想把這段路看完。"
    ),
    "Japanese": (
        "夜行列車は九時に海岸を出て、パン屋が開く前に首都に着く。ほとんどの人は眠っていて、何人かは本を読み、一人の老人だけがずっと窓の外を見ている。"
        "自分の顔のほかには何も見えないのに。なぜ横にならないのかと聞かれると、全部の道のりの料金を払ったのだから見ておきたいのだと答える。"
        "ようやく日が昇ると、畑はもう真っ白で、雪の降り始めを見たのは彼だけだった。"
    ),
    "Korean": (
        "밤 기차는 아홉 시에 바닷가를 떠나 빵집이 문을 열기 전에 수도에 도착한다. 대부분의 사람들은 잠을 자고 몇몇은 책을 읽는데, 한 노인은 자기 얼굴밖에 "
        "보이지 않는데도 내내 창밖을 바라본다. 왜 눕지 않느냐고 물으면 그는 전체 구간의 요금을 냈으니 다 보고 싶다고 말한다. 마침내 해가 뜨면 들판은 이미 "
        "하얗고, 눈이 내리기 시작하는 것을 본 사람은 그뿐이다."
    ),
}

_JAVASCRIPT = """
export async function loadOrders(customerId, { since, limit = 50 } = {}) {
  const query = new URLSearchParams({ customer: customerId, limit: String(limit) });
  if (since) query.set("since", since.toISOString());
  const response = await fetch(`/api/orders?${query}`, { headers: { accept: "application/json" } });
  if (!response.ok) {
    throw new Error(`orders of ${customerId}: ${response.status} ${response.statusText}`);
  }
  const { orders = [] } = await response.json();
  return orders
    .filter((order) => order.state !== "cancelled")
    .map(({ id, total, placedAt }) => ({ id, total: total / 100, placedAt: new Date(placedAt) }))
    .sort((a, b) => b.placedAt - a.placedAt);
}
"""

_CHAT = """User: my laptop won't connect to the wifi since yesterday, the phone is fine. what should i try?
Assistant: Let's narrow it down. First:

1. Turn the laptop's wifi off and on again.
2. **Forget** the network and join it anew (you'll need the password).
3. Restart the router if other devices are slow, too.

Does it say anything like "no internet" or "wrong password"?
User: it says "connected, no internet" :(
Assistant: Then the radio link is fine, and the address is not. Open a terminal and run `ipconfig /renew`. If that
fails, send me what `ipconfig /all` says for the wifi adapter.
"""

_EMOJI = "😀🎉🔥👍🏽❤️🚀✨👩‍💻🏳️‍🌈🇫🇷🙏😂🤣😍🥳💯👀🎂🌍🍕⚽🐶🌈☕📚🧠✅❌⚠️➡️"


def texts() -> dict[str, str]:
    """The texts by kind, each some hundreds to some thousands of characters."""
    chance = random.Random(7)
    orders = [
        {
            "id": f"ord_{chance.randrange(10**9)}",
            "customer": {
                "name": chance.choice(("Ana", "Bo", "Chen")),
                "city": chance.choice(("Lyon", "Graz", "Kyoto")),
            },
            "items": [{"sku": f"A-{chance.randrange(10**4)}", "count": chance.randrange(1, 9)} for _ in range(2)],
            "total": chance.randrange(10**5) / 100,
            "paid": chance.random() < 0.5,
        }
        for _ in range(8)
    ]
    rows = [[str(chance.randrange(10**6) / 100) for _ in range(6)] for _ in range(30)]
    table = "\n".join(("| " + " | ".join(row) + " |") for row in rows)
    return {
        **_SCRIPTS,
        "chat": _CHAT,
        "Python": inspect.getsource(textwrap.TextWrapper),
        "JavaScript": _JAVASCRIPT,
        "JSON, compact": json.dumps(orders, separators=(",", ":")),
        "JSON, indented": json.dumps(orders, indent=4),
        "table of numbers": table,
        "digits": "".join(str(chance.randrange(10)) for _ in range(600)),
        "base64": base64.b64encode(chance.getrandbits(6000).to_bytes(750, "big")).decode(),
        "hexadecimal": f"{chance.getrandbits(3000):0750x}",
        "emoji": _EMOJI * 4,
        "blanks": "\n".join(" " * (4 * (n % 12)) + "x" for n in range(100)),
    }
